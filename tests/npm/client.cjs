// Runs the OpAMP client of @elastic/opamp-client-node as the device of a certificate.
// Arguments: endpoint, device id, ca, certificate, key (PEM files).  Each message that it
// gets is a line of JSON on standard output; a policy is reported as applied.  It ends when
// its standard input does.
'use strict';
const fs = require('fs');
const path = require('path');
const { createRequire } = require('module');

const [folder, endpoint, instanceUid, ca, cert, key] = process.argv.slice(2);
const { createOpAMPClient, AgentCapabilities, RemoteConfigStatuses } =
    createRequire(path.join(folder, 'package.json'))('@elastic/opamp-client-node');

const tell = (what) => process.stdout.write(JSON.stringify(what) + '\n');

const client = createOpAMPClient({
    endpoint,
    instanceUid,
    capabilities: AgentCapabilities.AgentCapabilities_AcceptsRemoteConfig |
        AgentCapabilities.AgentCapabilities_ReportsRemoteConfig,
    heartbeatIntervalSeconds: 1,
    connect: {
        ca: fs.readFileSync(ca),
        cert: fs.readFileSync(cert),
        key: fs.readFileSync(key),
    },
    onMessage: ({ remoteConfig }) => {
        if (!remoteConfig) {
            return;
        }
        const file = remoteConfig.config.configMap['policy.json'];
        tell({
            policy: JSON.parse(Buffer.from(file.body).toString()),
            type: file.contentType,
            hash: Buffer.from(remoteConfig.configHash).toString('hex'),
        });
        client.setRemoteConfigStatus({
            status: RemoteConfigStatuses.RemoteConfigStatuses_APPLIED,
            lastRemoteConfigHash: remoteConfig.configHash,
        });
    },
});
client.setAgentDescription({
    identifyingAttributes: { 'service.name': 'somebody-else', 'service.version': '1.2.3' },
    nonIdentifyingAttributes: { 'host.name': 'host-of-npm', 'os.type': 'linux' },
});
client.start();
process.stdin.on('end', () => client.shutdown().then(() => process.exit(0)));
process.stdin.resume();
