from s4spipe.cli import main

main()
