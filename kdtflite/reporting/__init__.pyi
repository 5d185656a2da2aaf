from .html import write_html as write_html
from .plots import accuracy_versus_latency as accuracy_versus_latency
from .plots import accuracy_versus_size as accuracy_versus_size
from .plots import confusion_matrix as confusion_matrix
from .plots import training_curves as training_curves
from .schema import REPORT_VERSION as REPORT_VERSION
from .schema import Report as Report
from .text import render_table as render_table
