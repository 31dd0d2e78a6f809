"""Questions of several datasets as one, such as tasks and levels of different difficulty."""

import pyarrow as pa

from lit_adaptive.data.datasets.questions import QuestionRows


class ConcatenatedQuestions(QuestionRows):
    """The rows of several datasets of questions, one dataset after another.

    An id is that of the row in its dataset after the dataset's number: ``0/37+45#0``. A question
    that an earlier dataset has is left out; a column that a dataset lacks is None there.

    Args:
        parts: ``Arithmetic``, ``ReasoningTask``, ``Gsm8k`` or ``DeepScaleR``, at least one.

    Raises:
        ValueError: if there is no dataset, a column has different types, or an earlier dataset has
            all questions of another.
    """

    def __init__(self, parts: list[QuestionRows]) -> None:
        if not parts:
            raise ValueError("parts is empty; give at least one dataset of questions")
        tables: list[pa.Table] = []
        seen: set[str] = set()
        for number, part in enumerate(parts):
            prompts = part.table["prompt"].to_pylist()
            table = part.table.filter(pa.array([prompt not in seen for prompt in prompts]))
            if not len(table):
                raise ValueError(
                    f"earlier datasets have all questions of {part.source} (part {number}): leave "
                    "it out, or choose other settings"
                )
            ids = pa.array([f"{number}/{one}" for one in table["id"].to_pylist()])
            tables.append(table.set_column(table.column_names.index("id"), "id", ids))
            seen.update(prompts)
        source = " and ".join(dict.fromkeys(part.source for part in parts))
        try:
            whole = pa.concat_tables(tables, promote_options="default").combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"a column of {source} has different types in its parts: {error}"
            ) from error
        super().__init__({name: whole[name].to_pylist() for name in whole.column_names}, source)
