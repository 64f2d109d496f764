"""Embed prompts by the model's own text encoders, once for all stages."""

from s4spipe import models, prompts, stage
from s4spipe.files import write_tensors
from s4spipe.params import NO_PROMPTS, Params, device


@stage.command
def main(params: Params) -> None:
    if params.prompts == NO_PROMPTS:  # nothing to make; DVC wants the file
        write_tensors(models.EMBEDDINGS, {}, {"count": 0})
        return
    from s4spipe.models.diffusers.prompts import embed  # seconds to import

    texts, model = prompts.read(params.prompts), params.model.model_dump()
    tensors = embed(model, texts, device(params.run.device))
    about = {"count": len(texts), "guided": len(tensors["embeds"]) > len(texts), "model": models.identity(model)}
    write_tensors(models.EMBEDDINGS, tensors, about)


if __name__ == "__main__":
    main()
