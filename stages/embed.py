"""Embed prompts by the model's own text encoders, once for all stages."""

import click

from s4spipe import models, prompts, stage
from s4spipe.files import write_tensors
from s4spipe.models.diffusers.prompts import EMBEDDINGS, embed
from s4spipe.params import Params, device


@stage.command
@click.argument("path")
def main(params: Params, path: str) -> None:
    texts, model = prompts.read(path), params.model.model_dump()
    tensors = embed(model, texts, device(params.run.device))
    about = {"count": len(texts), "guided": len(tensors["embeds"]) > len(texts), "model": models.identity(model)}
    write_tensors(EMBEDDINGS, tensors, about)


if __name__ == "__main__":
    main()
