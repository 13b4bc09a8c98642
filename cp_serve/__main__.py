"""`python -m cp_serve`: deploy the Serve application on the running Ray cluster."""

from cp_serve.app import deploy
from services.settings import get_settings

if __name__ == "__main__":
    deploy(get_settings())
