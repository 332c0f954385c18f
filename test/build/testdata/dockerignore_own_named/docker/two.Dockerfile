FROM base
COPY . /src
