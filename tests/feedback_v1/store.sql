BEGIN TRANSACTION;
CREATE TABLE event (
	uuid VARCHAR(36) NOT NULL, 
	kind TEXT NOT NULL, 
	rater TEXT NOT NULL, 
	source TEXT NOT NULL, 
	at TEXT NOT NULL, 
	image TEXT NOT NULL, 
	shown_as TEXT NOT NULL, 
	generator TEXT NOT NULL, 
	checklist TEXT, 
	checklist_version TEXT, 
	checklist_hash TEXT, 
	answers TEXT, 
	verdict TEXT, 
	seconds FLOAT, 
	first_seconds FLOAT, 
	hidden_seconds FLOAT, 
	comment TEXT, 
	"view" TEXT, 
	session TEXT NOT NULL, 
	client_seq INTEGER NOT NULL, 
	supersedes VARCHAR(36), 
	PRIMARY KEY (uuid), 
	UNIQUE (session, client_seq)
);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000000','review','Ana','human','2026-01-05T10:00:00.000000+00:00','c11e930d39e2e037c0e105b680313ac721793fb6ec9f8ac70b4999be7e371bdd','lymphocyte','generator-0','peripheral-blood','1.0.0','bddad5dd308020e49add9c294741bd1eb38f0fea80230f14482b177e77180855','{"cell_size": "yes", "nucleus_shape": "yes", "nc_ratio": "yes", "chromatin": "no", "cytoplasm_colour": "yes", "granules": "yes", "inclusions": "yes"}','implausible',6.5,NULL,NULL,'naïve µm, "quoted"
and a line','card','browser-1',0,NULL);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000001','undo','Ana','human','2026-01-05T10:00:01.000000+00:00','c11e930d39e2e037c0e105b680313ac721793fb6ec9f8ac70b4999be7e371bdd','lymphocyte','generator-0','peripheral-blood','1.0.0','bddad5dd308020e49add9c294741bd1eb38f0fea80230f14482b177e77180855',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'browser-1',1,'00000000-0000-4000-8000-000000000000');
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000002','review','Ana','human','2026-01-05T10:00:02.000000+00:00','c11e930d39e2e037c0e105b680313ac721793fb6ec9f8ac70b4999be7e371bdd','lymphocyte','generator-0','peripheral-blood','1.0.0','bddad5dd308020e49add9c294741bd1eb38f0fea80230f14482b177e77180855','{"cell_size": "yes", "nucleus_shape": "yes", "nc_ratio": "yes", "chromatin": "yes", "cytoplasm_colour": "yes", "granules": "yes", "inclusions": "yes"}','plausible',2.0,NULL,NULL,NULL,'card','browser-1',2,'00000000-0000-4000-8000-000000000000');
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000003','skip','Ana','human','2026-01-05T10:00:03.000000+00:00','5487e778972b5de287af23b464b47d41cc4be426a04c0a818647cc9d04355ca7','lymphocyte','generator-0','peripheral-blood','1.0.0','bddad5dd308020e49add9c294741bd1eb38f0fea80230f14482b177e77180855',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'browser-1',3,NULL);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000004','review','Ben','human','2026-01-05T10:00:04.000000+00:00','5487e778972b5de287af23b464b47d41cc4be426a04c0a818647cc9d04355ca7','lymphocyte','generator-0','peripheral-blood','1.0.0','bddad5dd308020e49add9c294741bd1eb38f0fea80230f14482b177e77180855','{"cell_size": "yes", "nucleus_shape": "yes", "nc_ratio": "yes", "chromatin": "yes", "cytoplasm_colour": "yes", "granules": "no", "inclusions": "yes"}','implausible',NULL,NULL,NULL,NULL,NULL,'browser-2',0,NULL);
INSERT INTO "event" VALUES('00000000-0000-4000-8000-000000000005','review','simulated-1','simulated','2026-01-05T10:00:05.000000+00:00','653762e6459637b39cd6e68207780feae40a8d19f06731cfdaaf216d9b275ec4','lymphocyte','generator-0','peripheral-blood','1.0.0','bddad5dd308020e49add9c294741bd1eb38f0fea80230f14482b177e77180855','{"cell_size": "yes", "nucleus_shape": "yes", "nc_ratio": "yes", "chromatin": "yes", "cytoplasm_colour": "yes", "granules": "yes", "inclusions": "yes"}','plausible',NULL,NULL,NULL,NULL,NULL,'program',1,NULL);
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1);
CREATE TRIGGER event_no_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
COMMIT;
