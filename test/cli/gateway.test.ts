// The real gateway, started as its command starts it, from files on disk: a first start makes the token; wrong identities stop it.
import { spawn } from 'node:child_process'
import { chmod, stat, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { gatewayTarget, loadGatewayConfig, loadNodeConfig } from '../../cli/config.ts'
import { runGateway } from '../../cli/wiring.ts'
import { loadIdentity } from '../../edge-node/identity.ts'
import { eventually } from '../../ops/deadline.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { home, recordingIo } from './recording-io.ts'

const test = suite('cli: gateway', { ms: 60_000 })

const GATEWAY = 'listen: { host: 127.0.0.1, ports: { quic: 0, tls: 0, webtransport: off } }\nadmin: { port: 0 }\n'

async function fleet() {
  const at = await home()
  for (const words of [
    ['root', 'create'],
    ['keygen', '--role', 'gateway', '--id', 'gateway'],
    ['root', 'sign', at.path('config', 'gateway.request')],
    ['keygen', '--id', 'berlin-1'],
  ]) {
    const { code, err } = await at.godwit(...words)
    if (code !== 0) throw new Error(err)
  }
  await writeFile(at.path('config', 'gateway.yaml'), GATEWAY)
  return at
}

test('it starts from its files, makes its token, answers status, and stops', async () => {
  await using at = await fleet()
  const io = recordingIo({ env: at.env })
  const lines: string[] = []
  const running = await runGateway(await loadGatewayConfig(io), line => void lines.push(line))
  try {
    const { token } = await gatewayTarget(io, {})
    assert.match(token!, /^[0-9a-f]{64}$/)
    assert.is((await stat(at.path('state', 'gateway', 'admin.token'))).mode & 0o777, 0o600)
    const status = await at.godwit('status', '--gateway', running.adminUrl, '--json')
    assert.is(status.code, 0, status.err)
    assert.is(status.json().gateway.id, 'gateway')
    assert.ok((await at.godwit('status', '--gateway', running.adminUrl)).out.includes('no site has connected yet'))
    const unknown = await at.godwit('migrate', 'web-1', '--to', 'b', '--gateway', running.adminUrl)
    assert.is(unknown.code, 3)
    assert.match(unknown.err, /error VM_UNKNOWN|error SITE_UNKNOWN/)
    assert.not.ok(lines.join('').includes(token!), 'the token is not in the log')
    const second = await codeOf(async () => runGateway(await loadGatewayConfig(io), () => {}))
    assert.is(second, 'STORE_LOCKED')
  } finally {
    await running.close()
  }
})

test('a site enrols through it: token, request, approval by fingerprint, certificate on disk', async () => {
  await using at = await fleet()
  const io = recordingIo({ env: at.env })
  const lines: string[] = []
  const running = await runGateway(await loadGatewayConfig(io), line => void lines.push(line))
  try {
    const admin = ['--gateway', running.adminUrl, '--json']
    const { token } = (await at.godwit('enrol', 'token', 'berlin-1', ...admin)).json()
    const { listeners } = (await at.godwit('status', ...admin)).json().gateway
    const portOf = (engine: string) => listeners.find((listener: { engine: string }) => listener.engine === engine)?.port ?? 'off'
    await writeFile(
      at.path('config', 'node.yaml'),
      `site: berlin-1\ngateway: { host: 127.0.0.1, ports: { quic: ${portOf('quic')}, tls: ${portOf('tls')}, webtransport: off } }\n`,
    )
    const waiting = at.godwit('enrol', 'request', '--token', token, '--json')
    const pending = await eventually(
      async () => (await at.godwit('enrol', 'list', ...admin)).json().find((view: { status: string }) => view.status === 'pending'),
      { ms: 20_000, what: 'the request' },
    )
    const forged = await at.godwit('enrol', 'approve', 'berlin-1', '--fingerprint', 'aaaaa-aaaaa-aaaaa-aaaaa-aaaaa', ...admin)
    assert.is(forged.code, 6)
    const approved = await at.godwit('enrol', 'approve', 'berlin-1', '--fingerprint', pending.fingerprint, ...admin)
    assert.is(approved.code, 0, approved.err)
    const enrolled = await waiting
    assert.is(enrolled.code, 0, enrolled.err)
    assert.match(enrolled.err, new RegExp(`fingerprint ${pending.fingerprint}`))
    const config = await loadNodeConfig(io)
    const identity = await loadIdentity(config.identity, { role: 'site', id: 'berlin-1', now: Math.floor(Date.now() / 1000) })
    assert.is(identity.claims.id, 'berlin-1')
    assert.is((await at.godwit('enrol', 'status', '--json')).json().check, 'good')
    const stranger = await at.godwit('enrol', 'request', '--token', 'gwt-wrong', '--json')
    assert.is(stranger.code, 6)
    assert.is(stranger.json().error.code, 'TOKEN_INVALID')
  } finally {
    await running.close()
  }
})

test('Ctrl-C, which reaches launcher and gateway both, ends it in order', async () => {
  await using at = await fleet()
  const file = fileURLToPath(new URL('../../bin/godwit.js', import.meta.url))
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    const child = spawn(process.env['GODWIT_TEST_NODE'] ?? process.execPath, [file, 'gateway'], {
      detached: true,
      env: { ...process.env, ...at.env },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let log = ''
    child.stderr.on('data', chunk => {
      log += chunk
    })
    const ended = new Promise<[number | null, string | null]>(resolve => child.once('exit', (code, by) => resolve([code, by])))
    try {
      await eventually(() => log.includes('gateway ready') || undefined, { ms: 20_000, what: `the gateway: ${log}` })
      process.kill(-child.pid!, signal)
      setTimeout(() => process.kill(-child.pid!, signal), 20).unref()
      assert.equal(await ended, [0, null], log)
      assert.is(log.split('stopping; once more').length, 2)
    } finally {
      child.kill('SIGKILL')
    }
  }
})

test('an identity that would not be accepted stops the start', async () => {
  await using at = await fleet()
  const io = recordingIo({ env: at.env })
  const start = async () => runGateway(await loadGatewayConfig(io), () => {})
  await at.godwit('root', 'sign', at.path('config', 'gateway.request'), '--valid-for', '0s')
  await new Promise(resolve => setTimeout(resolve, 1100))
  assert.is(await codeOf(start), 'CERT_EXPIRED')
  await at.godwit('keygen', '--role', 'gateway', '--id', 'other', '--out', at.path('other'))
  await at.godwit('root', 'sign', at.path('other', 'gateway.request'), '--out', at.path('config', 'gateway.cert'))
  assert.is(await codeOf(start), 'AUTH_FAILED')
  await chmod(at.path('config', 'gateway.keys'), 0o644)
  assert.is(await codeOf(start), 'CONFIG_INVALID')
})

test.run()
