"""The catalog's own dataset types."""

from rebase.datasets.adapter import AdapterDataset as AdapterDataset
from rebase.datasets.checked import CheckedCSV as CheckedCSV
from rebase.datasets.checked import CheckedJSON as CheckedJSON
from rebase.datasets.checked import CheckedParquet as CheckedParquet
from rebase.datasets.checked import CheckedPlot as CheckedPlot
from rebase.datasets.checked import CheckedText as CheckedText
from rebase.datasets.checked import OptionalTableDataset as OptionalTableDataset
from rebase.datasets.inputs import EvaluationRowsDataset as EvaluationRowsDataset
from rebase.datasets.inputs import InputsDataset as InputsDataset
from rebase.datasets.inputs import RealDataset as RealDataset
from rebase.datasets.inputs import SheetsDataset as SheetsDataset
from rebase.datasets.inputs import SourcesDataset as SourcesDataset
from rebase.datasets.inputs import TaskDataset as TaskDataset
from rebase.datasets.metrics import MetricsDataset as MetricsDataset
from rebase.datasets.model_folder import ModelFolderDataset as ModelFolderDataset
from rebase.datasets.models import EncoderDataset as EncoderDataset
from rebase.datasets.models import StudentDataset as StudentDataset
from rebase.datasets.models import StudentsDataset as StudentsDataset
from rebase.datasets.prompts import PromptDataset as PromptDataset
from rebase.datasets.shards import ShardStore as ShardStore
from rebase.datasets.teacher import TeacherDataset as TeacherDataset
from rebase.datasets.versions import RunVersionDataset as RunVersionDataset
