BEGIN TRANSACTION;
CREATE TABLE accounts (
    device TEXT PRIMARY KEY, uploads INTEGER NOT NULL, weight REAL NOT NULL, credit REAL NOT NULL,
    cosine REAL NOT NULL, num_cosines INTEGER NOT NULL
);
INSERT INTO "accounts" VALUES('fan',2,1.0,0.0,0.0,0);
INSERT INTO "accounts" VALUES('lamp',2,1.0,0.0,0.0,0);
CREATE TABLE devices (
    device TEXT PRIMARY KEY, key TEXT NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL,
    online INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, hello TEXT, telemetry TEXT,
    held TEXT NOT NULL DEFAULT '[]', astray REAL
);
INSERT INTO "devices" VALUES('lamp','37b641f7017aeb7f43d30b79782c195291a86b7a71a35d22521f8bf96e6229c8',1.79529792823875832558e+09,1.79529793119472813609e+09,0,1,'{"device_id":"lamp","backend":"toy","ranks":[64,32,16,8,4,2,1],"encodings":["int4","int8","f16","f32"],"memory_bytes":1000000000,"tokens_per_s":96808.47048630688,"base":"cdd88dac01228081d4df3400df4b08cd3b73d6981eb8dfd5fdd96e15594ef94d"}',NULL,'[1,3]',NULL);
INSERT INTO "devices" VALUES('fan','092a16689ad0c1ab09f959575ef4f8797d6806f46256dce27b27eb0b382524f0',1.79529792825155758853e+09,1.79529793320029520987e+09,1,1,'{"device_id":"fan","backend":"toy","ranks":[2,1],"encodings":["int4","int8","f16","f32"],"memory_bytes":1000000000,"tokens_per_s":83182.15310848644,"base":"cdd88dac01228081d4df3400df4b08cd3b73d6981eb8dfd5fdd96e15594ef94d"}','{"base_version":3,"step":1,"steps":2,"loss":7.940660881273674,"tokens_per_s":60824.07942406547,"memory_bytes":40833024}','[1,3]',NULL);
INSERT INTO "devices" VALUES('lock','cd43f42c87ee8241d648f4f31135e2db9ab4331d9debba6044405ef64f70a68e',1.79529793130600118632e+09,1.79529793252432656293e+09,0,1,'{"device_id":"lock","backend":"toy","ranks":[2,1],"encodings":["int4","int8","f16","f32"],"memory_bytes":1000000000,"tokens_per_s":null,"base":"cdd88dac01228081d4df3400df4b08cd3b73d6981eb8dfd5fdd96e15594ef94d"}','{"base_version":3,"step":1,"steps":20,"loss":7.888790477405895,"tokens_per_s":84.26233003594021,"memory_bytes":40779776}','[3]',NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('fleet','home');
INSERT INTO "meta" VALUES('base','cdd88dac01228081d4df3400df4b08cd3b73d6981eb8dfd5fdd96e15594ef94d');
INSERT INTO "meta" VALUES('ranks','4, 2');
INSERT INTO "meta" VALUES('scale','2.0');
INSERT INTO "meta" VALUES('targets','q_proj');
INSERT INTO "meta" VALUES('residual rows','0');
INSERT INTO "meta" VALUES('epoch','1795297932546');
INSERT INTO "meta" VALUES('base name','base');
CREATE TABLE refusals (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, device TEXT NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, device TEXT NOT NULL, tier TEXT NOT NULL,
    base_version INTEGER NOT NULL, attempt INTEGER NOT NULL, sha256 TEXT NOT NULL, encoding TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, num_examples INTEGER NOT NULL, num_tokens INTEGER NOT NULL,
    num_steps INTEGER NOT NULL, seconds REAL NOT NULL, loss_before REAL, loss_after REAL,
    received_at REAL NOT NULL, status TEXT NOT NULL, reason TEXT, detail TEXT NOT NULL DEFAULT '',
    merged_into INTEGER, staleness INTEGER, weight REAL
);
INSERT INTO "updates" VALUES(1,'1a66db93f03eb9c8f6d44aac80a02b39','fan','r2',0,0,'036d4b75ede90757028dfca891ff4c2f095c8cf7e1b77156b5e6ddc014981ff5','int8',408,5,105,2,1.69831599851022474467e-03,8.06960712779652,7.79734386097301168661e+00,1.79529792919879412644e+09,'accepted',NULL,'',1,0,0.5);
INSERT INTO "updates" VALUES(2,'3e9972990600e4673627ba5985fa4346','lamp','r4',0,0,'89d14df49a94846e366b31dc84c474d49b405b8cfdd9a73108ad22410abdf45b','int8',440,6,126,2,1.35997500001394655555e-03,7.94949248342803,7.83891527580492386562e+00,1.79529792940055060385e+09,'accepted',NULL,'',1,0,0.5);
INSERT INTO "updates" VALUES(3,'2c47c7bb502bd879293d1a8078bc9509','fan','r2',1,0,'6063b9acb400d5edc9dedfd499740218e3de0204d20f0f940f861e9fdbc206b4','int8',408,5,105,2,1.26228999943123199045e-03,7.89210787686434667165e+00,7.92309662790009472388e+00,1.79529792981600761414e+09,'accepted',NULL,'',2,0,0.5);
INSERT INTO "updates" VALUES(4,'a00089a8bca044627778ec0e34bf04c3','lamp','r4',1,0,'f47c50d2a553589bb50fdb05ab6fb86cbc1893ef959825636d3eb1e66d6b9db7','int8',440,6,126,2,1.30153900136065203696e-03,7.9839357318300185895e+00,7.64474348588423335826e+00,1.79529793001254200932e+09,'accepted',NULL,'',2,0,0.5);
INSERT INTO "updates" VALUES(5,'cdc27d349fd928b1d0311d58f73a14de','lamp','r4',3,0,'e6ec62c37a60cd4359a749f18ab7f66c12d13a4fd9aeebda74fffd7cd58677ef','int8',440,5,105,2,1.48383899795589968562e-03,7.65390500155362207834e+00,7.82248109759706444776e+00,1.79529793108066105839e+09,'accepted',NULL,'',NULL,NULL,NULL);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, parent INTEGER, depth INTEGER NOT NULL, created_at REAL NOT NULL,
    master TEXT NOT NULL, remainder TEXT, tiers TEXT NOT NULL, report TEXT, kept INTEGER NOT NULL DEFAULT 1,
    loss REAL, exact REAL, carried TEXT NOT NULL DEFAULT '{}', origin TEXT
);
INSERT INTO "versions" VALUES(0,NULL,0,1.79529792812526869773e+09,'9471872c48d5e4b7985ff32aab562e6f6fa96b7c6f1fdc40e731956573ef00d1',NULL,'{"r4":"9471872c48d5e4b7985ff32aab562e6f6fa96b7c6f1fdc40e731956573ef00d1","r2":"e3b7994173975fd1cf666e349f58cb58cb81796ed1ed20dee75ad1f6a8766f2c"}',NULL,1,NULL,NULL,'{"norms":[],"moments":{}}',NULL);
INSERT INTO "versions" VALUES(1,0,1,1.79529792961317873002e+09,'0ef0ab36cd1cabd6309462c1c0f1edcde86ca5452015a9abd27ef5128f1e0b92',NULL,'{"r4":"0ef0ab36cd1cabd6309462c1c0f1edcde86ca5452015a9abd27ef5128f1e0b92","r2":"c2bb1e2ded9aa843637a9cd3a6d5dba44ae90f1351057310d192d66b293a93e1"}','{"strategy":"fedbuff","space":"product","shares":[{"update":"1a66db93f03eb9c8f6d44aac80a02b39","device":"fan","base_version":0,"staleness":0,"num_examples":5,"weight":0.5,"norm":0.011703545159938971,"reason":""},{"update":"3e9972990600e4673627ba5985fa4346","device":"lamp","base_version":0,"staleness":0,"num_examples":6,"weight":0.5,"norm":0.015168688431095206,"reason":""}],"step_norm":0.012674189294423537,"remainder_norm":0.0,"dropped_norm":2.714542033220731e-10,"step_scale":1.0,"loss_before":null,"loss_after":null,"loss_refused":null}',1,NULL,NULL,'{"norms":[],"moments":{"momentum-product":"8c4dd177a7c3949af0184c3180749987626e2374b2df4ae4d303554e0b8a23ed"}}',NULL);
INSERT INTO "versions" VALUES(2,1,2,1.7952979301728818417e+09,'013f2679691a4d6ad9fce3bca444bc1710fefa6fc5b649ccce7123ace7a876a0',NULL,'{"r4":"013f2679691a4d6ad9fce3bca444bc1710fefa6fc5b649ccce7123ace7a876a0","r2":"7e2d4fac00cbdf5e3c38e693b5c689ad5cfd4f99bc52dc97feefab693f18f07c"}','{"strategy":"fedbuff","space":"product","shares":[{"update":"2c47c7bb502bd879293d1a8078bc9509","device":"fan","base_version":1,"staleness":0,"num_examples":5,"weight":0.5,"norm":0.002117257482512847,"reason":""},{"update":"a00089a8bca044627778ec0e34bf04c3","device":"lamp","base_version":1,"staleness":0,"num_examples":6,"weight":0.5,"norm":0.0027479791971594626,"reason":""}],"step_norm":0.013373399395978643,"remainder_norm":0.0,"dropped_norm":2.6637576809418653e-8,"step_scale":1.0,"loss_before":null,"loss_after":null,"loss_refused":null}',1,NULL,NULL,'{"norms":[],"moments":{"momentum-product":"6dbcc62e158768debf3d663ec7a21bb29e0719fe4360b9cfb1279e4866a4c580"}}',NULL);
INSERT INTO "versions" VALUES(3,1,1,1760000000.0,'0ef0ab36cd1cabd6309462c1c0f1edcde86ca5452015a9abd27ef5128f1e0b92',NULL,'{"r4":"0ef0ab36cd1cabd6309462c1c0f1edcde86ca5452015a9abd27ef5128f1e0b92","r2":"c2bb1e2ded9aa843637a9cd3a6d5dba44ae90f1351057310d192d66b293a93e1"}',NULL,1,NULL,NULL,'{"norms":[],"moments":{"momentum-product":"8c4dd177a7c3949af0184c3180749987626e2374b2df4ae4d303554e0b8a23ed"}}',NULL);
CREATE INDEX updates_waiting ON updates (status, merged_into);
COMMIT;
PRAGMA user_version = 3;
