-- control.db as llmos wrote it before services had revisions (schema 4), with a job, a model, a service, a key and a tenant
CREATE TABLE jobs (
	id VARCHAR NOT NULL, name VARCHAR NOT NULL, number INTEGER NOT NULL, spec JSON NOT NULL, digest VARCHAR NOT NULL,
	idempotency_key VARCHAR, base_model VARCHAR, tenant VARCHAR DEFAULT 'default' NOT NULL,
	priority INTEGER DEFAULT '0' NOT NULL, phase VARCHAR NOT NULL, reason VARCHAR NOT NULL,
	created_at FLOAT NOT NULL, started_at FLOAT, ended_at FLOAT, model VARCHAR, metrics JSON NOT NULL,
	attempt INTEGER NOT NULL, attempts INTEGER NOT NULL, failures INTEGER NOT NULL, cancelled BOOLEAN NOT NULL,
	opened_at FLOAT NOT NULL, not_before FLOAT NOT NULL, run_s FLOAT NOT NULL, placement JSON NOT NULL,
	resumes BOOLEAN DEFAULT '0' NOT NULL, measured JSON DEFAULT '{}' NOT NULL,
	PRIMARY KEY (id), UNIQUE (name, number), UNIQUE (idempotency_key)
);
CREATE INDEX jobs_unfinished ON jobs (created_at) WHERE ended_at IS NULL;
CREATE INDEX jobs_by_age ON jobs (created_at);
CREATE TABLE attempts (
	job VARCHAR NOT NULL, number INTEGER NOT NULL, placement JSON NOT NULL, opened_at FLOAT NOT NULL, closed_at FLOAT,
	failed BOOLEAN NOT NULL, blamed BOOLEAN DEFAULT '0' NOT NULL, why VARCHAR NOT NULL,
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
	id VARCHAR NOT NULL, name VARCHAR NOT NULL, scopes JSON NOT NULL, tenant VARCHAR DEFAULT 'default' NOT NULL,
	secret_sha256 VARCHAR NOT NULL, created_at FLOAT NOT NULL, revoked_at FLOAT, PRIMARY KEY (id)
);
CREATE TABLE drained (node VARCHAR NOT NULL, at FLOAT NOT NULL, why VARCHAR NOT NULL, PRIMARY KEY (node));
CREATE TABLE events (
	number INTEGER NOT NULL, at FLOAT NOT NULL, kind VARCHAR NOT NULL, subject VARCHAR NOT NULL, what VARCHAR NOT NULL,
	why VARCHAR NOT NULL, PRIMARY KEY (number)
);
CREATE INDEX events_of ON events (kind, subject, number);
CREATE TABLE tenants (
	name VARCHAR NOT NULL, spec JSON NOT NULL, created_at FLOAT NOT NULL, used JSON DEFAULT '{}' NOT NULL,
	spent_gpu_s FLOAT DEFAULT '0' NOT NULL, used_at FLOAT DEFAULT '0' NOT NULL, PRIMARY KEY (name)
);
INSERT INTO tenants VALUES ('default', '{"kind": "Tenant", "name": "default", "share": 1.0}', 1.0, '{}', 0.0, 0.0);
INSERT INTO tenants VALUES ('vision', '{"kind": "Tenant", "name": "vision", "share": 2.0}', 1.0, '{}', 0.0, 1.0);
INSERT INTO jobs VALUES (
	'coder-1', 'coder', 1,
	'{"kind": "TrainJob", "name": "coder", "model": {"preset": "tiny"}, "data": {"path": ["/x"]}, "steps": 7, "tenant": "vision", "priority": 3, "output": {"model": "coder"}}',
	'00', NULL, NULL, 'vision', 3, 'queued', '', 1.0, NULL, NULL, NULL, '{}', 0, 0, 0, 0, 0.0, 0.0, 0.0, '[]', 0, '{}'
);
INSERT INTO models VALUES ('coder', 1, '00', 1, 1, '{}', NULL, 1.0, NULL);
INSERT INTO services VALUES (
	'chat',
	'{"kind": "Service", "name": "chat", "model": "coder@1", "mesh": {"dp": 1, "fsdp": 1, "tp": 1, "pp": 1, "cp": 1, "ep": 1}, "replicas": {"min": 2, "max": 2}, "resources": {"cpus": 1.0, "gpus": 0.0}, "engine": "llmos", "dtype": "auto", "max_batch": 64, "max_queue": 128, "token_budget": 512, "prefix_cache": true, "speculative": 0, "weights": {}}',
	'coder@1', 2.0
);
INSERT INTO keys VALUES ('aaaaaaaa', 'laptop', '["infer"]', 'vision', '00', 1.0, NULL);
