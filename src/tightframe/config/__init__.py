"""From a recipe to an experiment, and from a directory of runs back to a network."""

from tightframe.config.bind import AUTO, bind, check_trusted, located
from tightframe.config.experiment import Experiment, build
from tightframe.config.loading import LoadedRun, load_run
from tightframe.config.recipe import Method, Part, Recipe, find_recipe, recipe_parser, shipped_recipes

__all__ = [
    "AUTO",
    "Experiment",
    "LoadedRun",
    "Method",
    "Part",
    "Recipe",
    "bind",
    "build",
    "check_trusted",
    "find_recipe",
    "load_run",
    "located",
    "recipe_parser",
    "shipped_recipes",
]
