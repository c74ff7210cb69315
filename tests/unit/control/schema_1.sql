-- control.db as llmos wrote it before there were tenants (schema 1), with a job, its attempt, a model and a key
CREATE TABLE jobs (
	id VARCHAR NOT NULL, name VARCHAR NOT NULL, number INTEGER NOT NULL, spec JSON NOT NULL, digest VARCHAR NOT NULL,
	idempotency_key VARCHAR, base_model VARCHAR, phase VARCHAR NOT NULL, reason VARCHAR NOT NULL,
	created_at FLOAT NOT NULL, started_at FLOAT, ended_at FLOAT, model VARCHAR, metrics JSON NOT NULL,
	attempt INTEGER NOT NULL, attempts INTEGER NOT NULL, failures INTEGER NOT NULL, cancelled BOOLEAN NOT NULL,
	opened_at FLOAT NOT NULL, not_before FLOAT NOT NULL, run_s FLOAT NOT NULL, placement JSON NOT NULL,
	PRIMARY KEY (id), UNIQUE (name, number), UNIQUE (idempotency_key)
);
CREATE INDEX jobs_unfinished ON jobs (created_at) WHERE ended_at IS NULL;
CREATE INDEX jobs_by_age ON jobs (created_at);
CREATE TABLE attempts (
	job VARCHAR NOT NULL, number INTEGER NOT NULL, placement JSON NOT NULL, opened_at FLOAT NOT NULL, closed_at FLOAT,
	failed BOOLEAN NOT NULL, why VARCHAR NOT NULL,
	PRIMARY KEY (job, number), FOREIGN KEY(job) REFERENCES jobs (id)
);
CREATE TABLE services (
	name VARCHAR NOT NULL, spec JSON NOT NULL, model VARCHAR NOT NULL, created_at FLOAT NOT NULL, PRIMARY KEY (name)
);
CREATE TABLE models (
	name VARCHAR NOT NULL, version INTEGER NOT NULL, digest VARCHAR NOT NULL, size_bytes INTEGER NOT NULL,
	parameters INTEGER NOT NULL, lineage JSON NOT NULL, job VARCHAR, created_at FLOAT NOT NULL, removed_at FLOAT,
	PRIMARY KEY (name, version), UNIQUE (job), FOREIGN KEY(job) REFERENCES jobs (id)
);
CREATE TABLE keys (
	id VARCHAR NOT NULL, name VARCHAR NOT NULL, scopes JSON NOT NULL, secret_sha256 VARCHAR NOT NULL,
	created_at FLOAT NOT NULL, revoked_at FLOAT, PRIMARY KEY (id)
);
CREATE TABLE events (
	number INTEGER NOT NULL, at FLOAT NOT NULL, kind VARCHAR NOT NULL, subject VARCHAR NOT NULL, what VARCHAR NOT NULL,
	why VARCHAR NOT NULL, PRIMARY KEY (number)
);
CREATE INDEX events_of ON events (kind, subject, number);
INSERT INTO jobs VALUES (
	'coder-1', 'coder', 1,
	'{"kind": "TrainJob", "name": "coder", "model": {"preset": "tiny"}, "data": {"path": ["/x"]}, "steps": 7, "output": {"model": "coder"}}',
	'00', NULL, NULL, 'running', '', 1.0, 2.0, NULL, NULL, '{}', 1, 1, 0, 0, 2.0, 0.0, 0.0, '["node-0"]'
);
INSERT INTO attempts VALUES ('coder-1', 1, '["node-0"]', 2.0, NULL, 0, 'attempt 1');
INSERT INTO models VALUES ('coder', 1, '00', 1, 1, '{}', NULL, 1.0, NULL);
INSERT INTO keys VALUES ('aaaaaaaa', 'laptop', '["admin"]', '00', 1.0, NULL);
PRAGMA user_version = 1;
