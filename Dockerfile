# One image for discovery and for workers: `docker run IMAGE discovery ...`, `docker run IMAGE worker ...`.
# compose.yaml puts a whole network together.
FROM python:3.13-slim

# The lock first: this layer changes only when a dependency does.
COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock

COPY pyproject.toml README.md LICENSE /tmp/ec262/
COPY ec262 /tmp/ec262/ec262
COPY discovery /tmp/ec262/discovery
RUN pip install --no-cache-dir --no-deps /tmp/ec262 && rm -r /tmp/ec262 /tmp/requirements.lock

# Strangers' code runs below this user; a sandbox that is started as root would become nobody by itself.
RUN useradd --create-home --uid 10262 ec262 && install -d -o ec262 -g ec262 -m 0700 /var/lib/ec262 /home/ec262/.config/ec262
USER ec262
# Credentials and worker.toml; the keys of a discovery service. Both are to outlast the container.
VOLUME ["/home/ec262/.config/ec262", "/var/lib/ec262"]
ENV PYTHONUNBUFFERED=1

STOPSIGNAL SIGTERM
ENTRYPOINT ["ec262"]
CMD ["worker", "-v"]
