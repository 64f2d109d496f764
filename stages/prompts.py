"""Embed the prompts with the model's own text encoders, once for all stages."""

from s4spipe.models.base.loading import embed, identity
from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import NONE
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import read_lines, write_tensors


@stage.command
def main(params: Params) -> None:
    path, settings = stage.layout(params).prompts, stage.model_settings(params)
    if params.prompts == NONE:  # nothing to do, but DVC needs the file
        write_tensors(path, {}, {"count": 0})
        return
    texts = read_lines(params.prompts, "prompts")
    tensors, about = embed(settings, texts, stage.device(params))
    write_tensors(path, tensors, about | {"prompts": texts, "model": identity(settings)})


if __name__ == "__main__":
    main()
