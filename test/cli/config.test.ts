import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { gatewayTarget, loadGatewayConfig, loadNodeConfig, merge, nodeTarget } from '../../cli/config.ts'
import { defaultPaths } from '../../cli/paths.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'
import { home, recordingIo } from './recording-io.ts'

const test = suite('cli: configuration')

const NODE = 'site: berlin-1\ngateway:\n  host: gw.example.net\n'

async function load(kind: 'node' | 'gateway', text: string, env: Record<string, string> = {}) {
  await using at = await home(env)
  await mkdir(at.path('config'))
  await writeFile(at.path('config', `${kind}.yaml`), text)
  const io = recordingIo({ env: at.env })
  const config = kind === 'node' ? await loadNodeConfig(io) : await loadGatewayConfig(io)
  return JSON.parse(JSON.stringify(config).replaceAll(at.folder, '~'))
}

async function refusal(kind: 'node' | 'gateway', text: string): Promise<string> {
  const error = await thrown(() => load(kind, text))
  assert.ok(error instanceof GodwitError)
  assert.is(error.code, 'CONFIG_INVALID')
  return error.message.replace(/^.*\.yaml: /, '')
}

test('a node needs its site and its gateway, all else has a default', async () => {
  assert.equal(await load('node', NODE), {
    site: 'berlin-1',
    stateDir: '~/state/node',
    runDir: '~/run',
    imagesDir: '~/state/images',
    gateway: { id: 'gateway', host: 'gw.example.net', ports: { quic: 7443, tls: 7443, webtransport: 7444 } },
    transport: 'auto',
    identity: { keys: '~/config/site.keys', certificate: '~/config/site.cert', root: '~/config/root.pub' },
    revocations: '~/config/revocations',
    api: { socket: '~/run/node.sock' },
    log: { level: 'info', format: 'json' },
    limits: { memoryReserve: 268_435_456, reconnectSeconds: 30, switchoverSeconds: 2, warmUp: 4_194_304, copyDays: 7 },
    qemu: { users: 'auto' },
    commandKeys: {},
    commandTenant: 'main',
  })
})

test('a gateway needs nothing; both take what the file says, the environment above it', async () => {
  const gateway = await load('gateway', 'listen: { ports: { webtransport: off } }\nlog: { level: warn }\n', { GODWIT_LOG_FORMAT: 'text' })
  assert.equal(gateway.listen, { host: '0.0.0.0', ports: { quic: 7443, tls: 7443, webtransport: 'off' } })
  assert.equal(gateway.log, { level: 'warn', format: 'text' })
  const node = await load('node', `${NODE}transport: tls\nlimits: { memoryReserve: 1GiB }\n`, {
    GODWIT_TRANSPORT: 'quic',
    GODWIT_LOG_LEVEL: 'debug',
  })
  assert.is(node.transport, 'quic')
  assert.is(node.log.level, 'debug')
  assert.is(node.limits.memoryReserve, 1024 ** 3)
})

test('flags overrule the environment', async () => {
  await using at = await home({ GODWIT_TRANSPORT: 'quic' })
  await writeFile(at.path('node.yaml'), NODE)
  const config = await loadNodeConfig(recordingIo({ env: at.env }), {
    file: at.path('node.yaml'),
    flags: { transport: 'webtransport', site: undefined },
  })
  assert.is(config.transport, 'webtransport')
  assert.is(config.site, 'berlin-1')
})

test('relative paths in a file count from its folder', async () => {
  const { identity, api } = await load('node', `${NODE}identity: { keys: ../keys/berlin.keys }\napi: { socket: /run/x.sock }\n`)
  assert.is(identity.keys, '~/keys/berlin.keys')
  assert.is(api.socket, '/run/x.sock')
})

test('every wrong field is named with its line, what was expected, and the nearest name', async () => {
  const cases: ['node' | 'gateway', string, RegExp][] = [
    ['node', 'site: berlin-1\n', /^(line \d+: )?gateway\.host: is missing$/],
    ['node', NODE.replace('berlin-1', 'Berlin 1'), /^line 1: site: .*a-z, 0-9 and -/],
    ['node', `${NODE}trasnport: quic\n`, /^line 4: trasnport: unknown field \(did you mean transport\?\)/],
    ['node', `${NODE}  ports: { quik: 1 }\n`, /gateway\.ports\.quik: unknown field \(did you mean quic\?\)/],
    ['node', `${NODE}  ports: { quic: 70000 }\n`, /gateway\.ports\.quic: must be a port from 1 to 65535, or off/],
    ['node', `${NODE}transport: udp\n`, /^line 4: transport: .*"auto"\|"quic"/],
    ['node', `${NODE}limits: { memoryReserve: 1G }\n`, /limits\.memoryReserve: must be a number with B, KiB/],
    ['node', `${NODE}log: verbose\n`, /^line 4: log: /],
    ['gateway', 'admin: { port: -1 }\n', /^line 1: admin\.port: /],
    [
      'gateway',
      'admin: { host: 0.0.0.0 }\n',
      /^line 1: admin\.host: is 0\.0\.0\.0: an address beyond this machine needs tls\.certificate and tls\.key/,
    ],
    ['gateway', 'admin: { tls: { certificate: a.pem } }\n', /admin\.tls\.key: (is missing|must be a path)/],
    [
      'gateway',
      'mec021: { host: "::", port: 1, tokenFile: t, callbackHosts: [] }\n',
      /mec021\.host: is ::: an address beyond this machine needs tls/,
    ],
    [
      'gateway',
      'mec021: { host: "::1", port: 1, tokenFile: t, callbackHosts: ["http://a/"] }\n',
      /mec021\.callbackHosts\.0: must be a host or host:port/,
    ],
    ['gateway', 'id: [a]\n', /^line 1: id: /],
    ['gateway', 'id: a\nid: b\n', /malformed YAML at line 2/],
    ['gateway', '- a\n', /expected fields with values/],
  ]
  for (const [kind, text, message] of cases) assert.match(await refusal(kind, text), message, text)
  assert.match(await refusal('node', 'site: B\ntransport: x\n'), /site: .*; .*gateway\.host: is missing; .*transport: /)
})

test('a file that is named must be there; the default one need not', async () => {
  await using at = await home()
  const io = recordingIo({ env: at.env })
  assert.is(await codeOf(() => loadGatewayConfig(io, { file: at.path('none.yaml') })), 'CONFIG_UNREADABLE')
  assert.is(
    await codeOf(() => loadGatewayConfig(recordingIo({ env: { ...at.env, GODWIT_CONFIG: at.path('none.yaml') } }))),
    'CONFIG_UNREADABLE',
  )
  assert.is((await loadGatewayConfig(io)).id, 'gateway')
})

test('the sample configurations in packaging are valid', async () => {
  const folder = new URL('../../packaging/', import.meta.url)
  const samples = (await readdir(folder)).filter(name => name.endsWith('.yaml'))
  assert.equal(samples.sort(), ['client.yaml', 'gateway.yaml', 'node.yaml'])
  const io = recordingIo()
  assert.is((await loadGatewayConfig(io, { file: new URL('gateway.yaml', folder).pathname })).id, 'gateway')
  assert.is((await loadNodeConfig(io, { file: new URL('node.yaml', folder).pathname })).site, 'berlin-1')
  const client = recordingIo({ env: { GODWIT_CLIENT_CONFIG: new URL('client.yaml', folder).pathname } })
  assert.is((await nodeTarget(client, {})).socketPath, '/run/godwit/node.sock')
})

/** Tried under the node: docs/internals/measurements.md, "Limits of a QEMU". */
const CONFINED = [
  'ProtectSystem=strict',
  'ProtectKernelTunables=yes',
  'ProtectKernelModules=yes',
  'ProtectProc=invisible',
  'RestrictNamespaces=yes',
  'SystemCallArchitectures=native',
  'SystemCallErrorNumber=EPERM',
]

test('the systemd units name files and commands that exist, never kill QEMU with the node, and confine both', async () => {
  for (const kind of ['gateway', 'node']) {
    const unit = await readFile(new URL(`../../packaging/godwit-${kind}.service`, import.meta.url), 'utf8')
    assert.match(unit, new RegExp(`^ExecStart=.*/godwit\\.js ${kind} --config /etc/godwit/${kind}\\.yaml$`, 'm'))
    assert.match(unit, /^NoNewPrivileges=yes$/m)
    assert.is(/^KillMode=process$/m.test(unit), kind === 'node')
    for (const line of CONFINED) assert.ok(unit.split('\n').includes(line), `${kind}: ${line}`)
    assert.match(unit, /^SystemCallFilter=@system-service( @io-event seccomp)?$/m)
    assert.is(/^CapabilityBoundingSet=$/m.test(unit), kind === 'gateway')
  }
})

test('the gateway is found by flag, then environment, then file, then default', async () => {
  await using at = await home()
  await mkdir(at.path('config'))
  await writeFile(at.path('token'), 'from-file\n', { mode: 0o600 })
  await writeFile(at.path('config', 'client.yaml'), 'gateway: { url: http://file:1, tokenFile: ../token }\nsocket: here.sock\n')
  const target = (flags: object, env: Record<string, string> = {}) => gatewayTarget(recordingIo({ env: { ...at.env, ...env } }), flags)
  assert.equal(await target({}), { url: 'http://file:1', token: 'from-file' })
  assert.equal(await target({}, { GODWIT_GATEWAY: 'http://env:2', GODWIT_TOKEN: 'inline' }), { url: 'http://env:2', token: 'inline' })
  assert.is((await target({ gateway: 'http://flag:3' }, { GODWIT_GATEWAY: 'http://env:2' })).url, 'http://flag:3')
  assert.is((await target({ 'token-file': at.path('token') }, { GODWIT_TOKEN: 'inline' })).token, 'from-file')
  assert.is((await nodeTarget(recordingIo({ env: at.env }), {})).socketPath, at.path('config', 'here.sock'))
  await writeFile(at.path('open'), 'x', { mode: 0o644 })
  assert.is(await codeOf(() => target({ 'token-file': at.path('open') })), 'CONFIG_INVALID')
  assert.is(await codeOf(() => target({ 'token-file': at.path('none') })), 'CONFIG_UNREADABLE')
  const inUrl = (await thrown(() => target({ gateway: 'http://me:pw-12345@host:1' }))) as GodwitError
  assert.equal([inUrl.code, inUrl.message.includes('pw-12345')], ['USAGE', false])
})

test('default folders: root has the system, others XDG, GODWIT_HOME beats both', () => {
  const at = (io: { env?: Record<string, string>; isRoot?: boolean }) => defaultPaths({ env: {}, isRoot: false, homeDir: '/home/u', ...io })
  assert.equal(at({ isRoot: true }), { configDir: '/etc/godwit', stateDir: '/var/lib/godwit', runDir: '/run/godwit' })
  assert.equal(at({}), {
    configDir: '/home/u/.config/godwit',
    stateDir: '/home/u/.local/state/godwit',
    runDir: '/home/u/.local/state/godwit/run',
  })
  const xdg = { XDG_CONFIG_HOME: '/c', XDG_STATE_HOME: '/s', XDG_RUNTIME_DIR: '/run/user/1' }
  assert.equal(at({ env: xdg }), { configDir: '/c/godwit', stateDir: '/s/godwit', runDir: '/run/user/1/godwit' })
  assert.is(at({ isRoot: true, env: { GODWIT_HOME: '/h' } }).configDir, '/h/config')
})

test('merging goes field by field and does not touch its parts', () => {
  const first = { a: { b: 1, c: 2 }, list: [1] }
  assert.equal(merge(first, { a: { b: 3 }, list: [2, 3], d: undefined }), { a: { b: 3, c: 2 }, list: [2, 3] })
  assert.equal(first, { a: { b: 1, c: 2 }, list: [1] })
})

test.run()
