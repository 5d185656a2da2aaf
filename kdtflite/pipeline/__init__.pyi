from .recipe import Recipe as Recipe
from .recipe import list_recipes as list_recipes
from .recipe import load_recipe as load_recipe
from .run import run as run
from .run_result import RunResult as RunResult
from .until_accurate import UntilAccurate as UntilAccurate
from .until_accurate import until_accurate as until_accurate
