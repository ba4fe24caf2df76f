// The real gateway, started as its command starts it, from files on disk: a first start makes the token; wrong
// identities stop it.

import { execFileSync, spawn } from 'node:child_process'
import { chmod, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { gatewayTarget, loadGatewayConfig, loadNodeConfig } from '../../cli/config.ts'
import { runGateway } from '../../cli/wiring.ts'
import { loadIdentity } from '../../identity/load.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { eventually, within } from '../../ops/deadline.ts'
import { requestText } from '../../ops/http-client.ts'
import { createServerCertificate } from '../../transport/self-signed.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { home, recordingIo } from './recording-io.ts'

const test = suite('cli: gateway', { ms: 60_000 })

const GATEWAY = 'listen: { host: 127.0.0.1, ports: { quic: 0, tls: 0, webtransport: off } }\nadmin: { port: 0 }\n'

async function fleet() {
  const at = await home()
  for (const words of [
    ['root', 'create'],
    ['keygen', '--role', 'gateway', '--id', 'gateway'],
    ['root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint'],
    ['keygen', '--id', 'berlin-1'],
  ]) {
    const { code, err } = await at.godwit(...words)
    if (code !== 0) throw new Error(err)
  }
  await writeFile(at.path('config', 'gateway.yaml'), GATEWAY)
  return at
}

/** A Node that cannot run this project itself, so that bin/godwit.js runs another one. */
const OLD_NODE = process.env['GODWIT_TEST_NODE'] ?? '/usr/bin/node'

function oldNodeProblem(): string | undefined {
  try {
    const version = execFileSync(OLD_NODE, ['--version'], { encoding: 'utf8' })
    return Number(version.slice(1).split('.')[0]) < 24 ? undefined : `${OLD_NODE} is ${version.trim()}: no child is started`
  } catch {
    return `there is no ${OLD_NODE}`
  }
}

function startCommand(node: string, env: Record<string, string | undefined>, ...words: string[]) {
  const file = fileURLToPath(new URL('../../bin/godwit.js', import.meta.url))
  const child = spawn(node, [file, ...words], { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'pipe'] })
  let log = ''
  child.stderr.on('data', chunk => {
    log += chunk
  })
  const ended = new Promise<void>(resolve => child.once('close', () => resolve()))
  return {
    child,
    log: () => log,
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM')
      await within(ended, { ms: 20_000, what: 'the end of the command' })
    },
  }
}

/** Processes that a process has started and that run. */
async function childrenOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')
  return text.split(' ').filter(Boolean).map(Number)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
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

test('admin.tls: HTTPS beyond this machine too; the command asks with the certificate, and says what is missing without', async () => {
  await using at = await fleet()
  const { certificatePem, keyPem } = createServerCertificate()
  await writeFile(at.path('config', 'admin.pem'), certificatePem)
  await writeFile(at.path('config', 'admin.key'), keyPem, { mode: 0o600 })
  const admin = 'admin: { host: 0.0.0.0, port: 0, tls: { certificate: admin.pem, key: admin.key } }\n'
  await writeFile(at.path('config', 'gateway.yaml'), GATEWAY.replace('admin: { port: 0 }\n', admin))
  const running = await runGateway(await loadGatewayConfig(recordingIo({ env: at.env })), () => {})
  try {
    const { port, protocol } = new URL(running.adminUrl)
    assert.is(protocol, 'https:')
    const ask = ['status', '--json', '--gateway', `https://localhost:${port}`]
    const status = await at.godwit(...ask, '--gateway-ca', at.path('config', 'admin.pem'))
    assert.is(status.code, 0, status.err)
    assert.is(status.json().gateway.id, 'gateway')
    const untrusted = await at.godwit(...ask)
    assert.equal([untrusted.code, /--gateway-ca/.test(untrusted.err + untrusted.out)], [5, true])
    await writeFile(at.path('config', 'client.yaml'), `gateway: { url: "https://localhost:${port}", ca: admin.pem }\n`)
    const fromFile = await at.godwit('status', '--json')
    assert.is(fromFile.code, 0, fromFile.err)
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
    const identity = await loadIdentity(config.identity, { role: 'site', id: 'berlin-1', now: nowSeconds() })
    assert.is(identity.claims.id, 'berlin-1')
    assert.is((await at.godwit('enrol', 'status', '--json')).json().check, 'good')
    const stranger = await at.godwit('enrol', 'request', '--token', 'gwt-wrong', '--json')
    assert.is(stranger.code, 6)
    assert.is(stranger.json().error.code, 'TOKEN_INVALID')
  } finally {
    await running.close()
  }
})

test("the gateway's own certificate is renewed by root renew, while it runs; the list is dated anew and handed to it", async () => {
  await using at = await fleet()
  // 300 s of 400 have passed: the skew that every certificate is dated back.
  await at.godwit('root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint', '--valid-for', '100s')
  const list = at.path('config', 'revocations')
  const elsewhere = at.path('operator-list')
  await rename(list, elsewhere)
  const running = await runGateway(await loadGatewayConfig(recordingIo({ env: at.env })), () => {})
  try {
    const flags = ['--gateway', running.adminUrl]
    const renew = async () => {
      const { code, json, err } = await at.godwit('root', 'renew', '--list', elsewhere, ...flags, '--json')
      assert.is(code, 0, err)
      return json() as { renewals: { role: string; id: string; outcome: string }[]; revocations: { number: number; isNew: boolean } }
    }
    const first = await eventually(async () => ((await renew()).renewals.length > 0 ? true : undefined), {
      ms: 10_000,
      what: 'the request',
    })
    assert.ok(first)
    const { token } = await gatewayTarget(recordingIo({ env: at.env }), { gateway: running.adminUrl })
    const metrics = () => requestText({ url: running.adminUrl, token: token!, path: '/metrics' })
    const left = async () => Number(/^godwit_gateway_certificate_expires_in_seconds (\S+)$/m.exec(await metrics())?.[1])
    await eventually(async () => ((await left()) > 86_400 ? true : undefined), { ms: 20_000, everyMs: 200, what: 'the new certificate' })
    assert.match(await metrics(), /^godwit_gateway_revocation_list_age_seconds [0-9]/m)
    assert.equal(await renew(), { renewals: [], revocations: { number: 1, isNew: false } })
  } finally {
    await running.close()
  }
  const again = await runGateway(await loadGatewayConfig(recordingIo({ env: at.env })), () => {})
  await again.close()
  assert.match((await at.godwit('root', 'show', at.path('state', 'gateway', 'gateway.cert'))).out, 'gateway')
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
      assert.is(log.split('stopping; press Ctrl-C again').length, 2)
    } finally {
      child.kill('SIGKILL')
    }
  }
})

test(
  'kill -9 of the launcher ends its gateway in order, and the next start finds the state free',
  async () => {
    await using at = await fleet()
    const first = startCommand(OLD_NODE, at.env, 'gateway')
    try {
      await eventually(() => first.log().includes('gateway ready') || undefined, { ms: 60_000, what: `the gateway: ${first.log()}` })
      const [inner] = await childrenOf(first.child.pid!)
      assert.ok(inner, 'the launcher runs the gateway in a child')
      first.child.kill('SIGKILL')
      await using second = startCommand(OLD_NODE, at.env, 'gateway')
      await eventually(() => (isAlive(inner) ? undefined : true), { ms: 20_000, what: `the end of the child: ${first.log()}` })
      assert.match(first.log(), 'stopping; press Ctrl-C again to stop at once')
      await eventually(() => second.log().includes('gateway ready') || undefined, { ms: 60_000, what: `the next start: ${second.log()}` })
      assert.not.match(second.log(), 'STORE_LOCKED')
    } finally {
      await first[Symbol.asyncDispose]()
    }
  },
  { ms: 180_000, skip: oldNodeProblem() },
)

test('an identity that would not be accepted stops the start', async () => {
  await using at = await fleet()
  const io = recordingIo({ env: at.env })
  const start = async () => runGateway(await loadGatewayConfig(io), () => {})
  await at.godwit('root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint', '--valid-for', '0s')
  await new Promise(resolve => setTimeout(resolve, 1100))
  assert.is(await codeOf(start), 'CERT_EXPIRED')
  await at.godwit('keygen', '--role', 'gateway', '--id', 'other', '--out', at.path('other'))
  await at.godwit('root', 'sign', at.path('other', 'gateway.request'), '--no-fingerprint', '--out', at.path('config', 'gateway.cert'))
  assert.is(await codeOf(start), 'AUTH_FAILED')
  await chmod(at.path('config', 'gateway.keys'), 0o644)
  assert.is(await codeOf(start), 'CONFIG_INVALID')
})

test.run()
