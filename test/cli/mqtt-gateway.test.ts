// The gateway's `mqtt` and `mec021` from gateway.yaml: what is wrong is named, what is right runs.
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { loadGatewayConfig } from '../../cli/config.ts'
import { runGateway } from '../../cli/wiring.ts'
import { createServerCertificate } from '../../transport/self-signed.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'
import { home, recordingIo } from './recording-io.ts'

const test = suite('cli: mqtt configuration')
const KEY = 'iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w='

async function load(yaml: string) {
  await using at = await home()
  await mkdir(at.path('config'))
  await writeFile(at.path('config', 'gateway.yaml'), yaml)
  const config = await loadGatewayConfig(recordingIo({ env: at.env }))
  return JSON.parse(JSON.stringify(config.mqtt).replaceAll(at.folder, '~'))
}

test('MQTT is off unless asked for; paths count from the file', async () => {
  assert.equal(await load('id: gateway\n'), {
    mode: 'off',
    tenant: 'main',
    listen: { host: '127.0.0.1', port: 1883 },
    users: {},
    version: 'auto',
    commandKeys: {},
    measurementKeys: {},
    trustBroker: false,
    places: {},
    workers: 0,
  })
  const mqtt = await load(
    'mqtt: { mode: external, url: "mqtts://b:8883", passwordFile: pw, tls: { ca: ca.pem }, users: { x: { passwordFile: sub/x, may: [measure] } }, places: { oslo: {} } }\n',
  )
  assert.equal(
    [mqtt.passwordFile, mqtt.tls.ca, mqtt.users.x.passwordFile, mqtt.places.oslo],
    ['~/config/pw', '~/config/ca.pem', '~/config/sub/x', { zones: [] }],
  )
})

test('every wrong field is named', async () => {
  const cases: [string, RegExp][] = [
    ['{ mode: on }', /mqtt\.mode: /],
    ['{ mode: external }', /mqtt\.url: is required in mode external/],
    ['{ mode: external, url: "http://x" }', /mqtt\.url: must be mqtt:\/\/host:port/],
    ['{ mode: external, url: "mqtt://me:pw-12345@x" }', /mqtt\.url: must not contain a user name or a password: use mqtt\.username/],
    ['{ mode: external, url: "mqtt://me@x/" }', /mqtt\.url: must not contain a user name/],
    ['{ mode: embedded, listen: { host: 0.0.0.0 } }', /mqtt\.tls: a broker that listens beyond this machine needs/],
    ['{ tls: { certificate: c.pem } }', /mqtt\.tls: certificate and key must be set together/],
    ['{ users: { "a.b": { passwordFile: x, may: [measure] } } }', /mqtt\.users/],
    ['{ users: { a: { passwordFile: x, may: [fly] } } }', /mqtt\.users\.a\.may\.0: /],
    ['{ commandKeys: { a: { publicKey: AAAA, actions: [start] } } }', /mqtt\.commandKeys\.a\.publicKey: must be 32 bytes/],
    ['{ measurementKeys: { a: { publicKey: AAAA } } }', /mqtt\.measurementKeys\.a\.publicKey: must be 32 bytes/],
    [`{ measurementKeys: { a: { publicKey: "${KEY}", kinds: [gossip] } } }`, /mqtt\.measurementKeys\.a\.kinds\.0: /],
    ['{ trustBroker: perhaps }', /mqtt\.trustBroker: /],
    [`{ commandKeys: { a: { publicKey: "${KEY}", actions: [] } } }`, /mqtt\.commandKeys\.a\.actions: /],
    ['{ tennant: x }', /mqtt\.tennant: unknown field \(did you mean tenant\?\)/],
  ]
  for (const [yaml, message] of cases) {
    const error = await thrown(() => load(`mqtt: ${yaml}\n`))
    assert.ok(error instanceof GodwitError && error.code === 'CONFIG_INVALID', yaml)
    assert.match((error as GodwitError).message, message)
    assert.not.match((error as GodwitError).message, 'pw-12345')
  }
})

test('a gateway from its files: an embedded broker with TLS, users, keys, and the MEC 021 front', async () => {
  await using at = await home()
  for (const words of [
    ['root', 'create'],
    ['keygen', '--role', 'gateway', '--id', 'gateway'],
    ['root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint'],
  ])
    assert.is((await at.godwit(...words)).code, 0)
  const { certificatePem, keyPem } = createServerCertificate()
  await writeFile(at.path('config', 'broker.pem'), certificatePem)
  await writeFile(at.path('config', 'broker.key'), keyPem, { mode: 0o600 })
  await writeFile(at.path('config', 'eye.password'), 'eye-secret\n', { mode: 0o600 })
  const yaml = [
    'listen: { host: 127.0.0.1, ports: { quic: 0, tls: 0, webtransport: off } }',
    'admin: { port: 0 }',
    'mqtt:',
    '  mode: embedded',
    '  tenant: acme',
    '  listen: { host: 127.0.0.1, port: 0 }',
    '  tls: { certificate: broker.pem, key: broker.key }',
    '  users: { eye: { passwordFile: eye.password, may: [observe] } }',
    `  commandKeys: { noc: { publicKey: "${KEY}", actions: [start] } }`,
    'mec021: { host: 127.0.0.1, port: 0, tokenFile: mec021.token, callbackHosts: [127.0.0.1] }',
  ].join('\n')
  await writeFile(at.path('config', 'gateway.yaml'), yaml)
  const io = recordingIo({ env: at.env })
  const lines: string[] = []
  const config = await loadGatewayConfig(io)
  const running = await runGateway(config, line => void lines.push(line))
  try {
    const url = /mqtts:\/\/127\.0\.0\.1:(\d+)/.exec(lines.join(''))
    assert.ok(url, lines.join(''))
    const flags = ['--tenant', 'acme', '--user', 'eye', '--password-file', at.path('config', 'eye.password'), '--count', '1']
    const broker = ['--broker', `mqtts://localhost:${url?.[1]}`]
    const shown = await at.godwit('mqtt', 'tail', ...broker, ...flags, '--ca', at.path('config', 'broker.pem'))
    assert.is(shown.code, 0, shown.err)
    assert.is(JSON.parse(shown.out).topic, 'godwit/v1/acme/gateway/gateway/state')
    assert.is((await at.godwit('mqtt', 'tail', ...broker, ...flags)).code, 5, 'a certificate that nobody vouches for')
    assert.not.ok(lines.join('').includes('eye-secret'))
  } finally {
    await running.close()
  }
  await chmod(at.path('config', 'eye.password'), 0o644)
  assert.is(await codeOf(() => runGateway(config, () => {})), 'CONFIG_INVALID')
})

test.run()
