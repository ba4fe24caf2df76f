// Secrets stay where they belong: every one that is used in the life of a gateway and a site (root, keys, admin token,
// enrolment token, passwords of MQTT) is looked for in all logs, answers, metrics, outputs of commands and command
// lines. With real processes; no QEMU is needed.
import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readRoot } from '../../cli/signing.ts'
import { eventually, within } from '../../ops/deadline.ts'
import { requestText } from '../../ops/http-client.ts'
import { home } from '../cli/recording-io.ts'
import { checkSecrets, commandLines, type Text } from '../support/secrets.ts'
import { assert, suite, thrown } from '../support/suite.ts'

const test = suite('e2e/secrets', { ms: 120_000 })
const BIN = fileURLToPath(new URL('../../bin/godwit.js', import.meta.url))
const MS = 60_000
const PASSWORD = 'mqtt-password-4711-0815'
const URL_PASSWORD = 'url-password-2342-1337'

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}

test('no secret of a gateway or a site is in a log, an answer, a metric, an output or a command line', async () => {
  await using at = await home()
  await using stack = new AsyncDisposableStack()
  const texts: Text[] = []
  const start = (name: string, words: string[]): ChildProcess => {
    const child = spawn(process.execPath, [BIN, ...words], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...at.env } })
    const log = createWriteStream(at.path(`${name}.log`))
    child.stdout?.pipe(log, { end: false })
    child.stderr?.pipe(log, { end: false })
    const ended = new Promise<void>(resolve => child.once('exit', () => log.end(() => resolve())))
    stack.defer(async () => {
      child.kill('SIGTERM')
      await within(ended, { ms: MS, what: `the end of ${name}` }).catch(() => child.kill('SIGKILL'))
    })
    return child
  }
  const godwit = async (...words: string[]) => {
    const ended = await at.godwit(...words)
    // The operator's own token is the answer of this one command.
    if (words[1] !== 'token') texts.push({ where: `the output of godwit ${words[0]} ${words[1]}`, text: ended.out + ended.err })
    return ended
  }
  const ports = { tls: await freePort(), admin: await freePort(), mqtt: await freePort() }

  await godwit('root', 'create')
  await godwit('keygen', '--role', 'gateway', '--id', 'gateway')
  assert.is((await godwit('root', 'sign', at.path('config', 'gateway.request'), '--no-fingerprint')).code, 0)
  await godwit('mqtt', 'keygen', '--name', 'noc')
  await godwit('mqtt', 'keygen', '--for', 'measurement', '--name', 'probe')
  await writeFile(at.path('telco.password'), `${PASSWORD}\n`, { mode: 0o600 })
  await writeFile(at.path('wrong.password'), `${PASSWORD}-wrong\n`, { mode: 0o600 })
  const yaml = (mqtt: string) =>
    [
      `listen: { host: 127.0.0.1, ports: { quic: off, tls: ${ports.tls}, webtransport: off } }`,
      `admin: { port: ${ports.admin} }`,
      `mqtt: ${mqtt}`,
      'policy: { name: regret }',
      'log: { level: debug, format: json }',
    ].join('\n')
  const users = `users: { telco: { passwordFile: ${at.path('telco.password')}, may: [measure, observe] } }`
  await writeFile(at.path('config', 'gateway.yaml'), yaml(`{ mode: embedded, listen: { port: ${ports.mqtt} }, ${users} }`))
  start('gateway', ['gateway'])
  const target = ['--gateway', `http://127.0.0.1:${ports.admin}`]
  await eventually(async () => ((await at.godwit('status', ...target)).code === 0 ? true : undefined), {
    ms: MS,
    everyMs: 200,
    what: 'the gateway',
  })

  // A site, enrolled with its token on the command line.
  await mkdir(at.path('config'), { recursive: true })
  await writeFile(
    at.path('config', 'node.yaml'),
    `site: a\ngateway: { id: gateway, host: 127.0.0.1, ports: { quic: off, tls: ${ports.tls}, webtransport: off } }\ntransport: tls\nlog: { level: debug, format: text }\n`,
  )
  await godwit('keygen', '--role', 'site', '--id', 'a')
  const token = (await godwit('enrol', 'token', 'a', ...target)).out.trim()
  assert.ok(token.length > 20)
  const enrolling = start('enrol', ['enrol', 'request', '--token', token])
  const waiting = async () => {
    const list = (await at.godwit('enrol', 'list', '--json', ...target)).json() as { site: string; fingerprint?: string }[]
    return list.find(({ site, fingerprint }) => site === 'a' && fingerprint)?.fingerprint
  }
  const fingerprint = await eventually(waiting, { ms: MS, everyMs: 200, what: 'the request of the site' })
  texts.push(...(await commandLines(at.folder, [enrolling.pid!, ...(await childrenOf(enrolling.pid!))])))
  assert.ok(
    texts.some(({ where }) => where.endsWith(`process ${enrolling.pid}`)),
    'the command line was looked at',
  )
  const approved = await godwit('enrol', 'approve', 'a', '--fingerprint', fingerprint, ...target)
  assert.is(approved.code, 0, approved.err)
  await eventually(() => (enrolling.exitCode === 0 ? true : undefined), { ms: MS, what: 'the certificate' })
  start('node', ['node'])
  const isOnline = async () => ((await at.godwit('status', '--json', ...target)).out.includes('"online": true') ? true : undefined)
  await eventually(isOnline, { ms: MS, everyMs: 200, what: 'the site online' })

  // What goes wrong shows no secret either.
  const mqtt = ['--user', 'telco', '--broker', `mqtt://127.0.0.1:${ports.mqtt}`]
  const latency = ['mqtt', 'measure', 'ue/u1/meas/latency', '{"seq":1,"vmId":"v","targetSite":"a","rttMs":1}', ...mqtt]
  assert.is(
    (await godwit(...latency, '--password-file', at.path('telco.password'), '--key', at.path('config', 'measurement-probe.key'))).code,
    0,
  )
  assert.is((await godwit(...latency, '--password-file', at.path('wrong.password'))).code, 6)
  const inUrl = await godwit('mqtt', 'tail', '--broker', `mqtt://telco:${URL_PASSWORD}@127.0.0.1:${ports.mqtt}`)
  assert.equal([inUrl.code, /must not contain a user name or a password/.test(inUrl.err)], [2, true])
  await writeFile(at.path('config', 'bad.yaml'), yaml(`{ mode: external, url: "mqtt://telco:${URL_PASSWORD}@broker.example" }`))
  const bad = await godwit('gateway', '--config', at.path('config', 'bad.yaml'))
  assert.equal([bad.code, /mqtt\.url: must not contain a user name or a password/.test(bad.err)], [2, true], bad.err)
  await godwit('status', '--json', ...target)
  await godwit('migrate', 'nobody', '--to', 'a', '--json', ...target)
  const admin = (await readFile(at.path('state', 'gateway', 'admin.token'), 'utf8')).trim()
  for (const path of ['/metrics', '/v1/status', '/v1/enrolments', '/v1/migrations'])
    texts.push({ where: path, text: await requestText({ url: target[1]!, token: admin, path }) })
  texts.push(...(await commandLines(at.folder)))
  await stack.disposeAsync()

  const root = await readRoot(at.path('config', 'root.key'))
  const secrets = [
    { name: 'the enrolment token', value: token },
    { name: 'a password in a URL', value: URL_PASSWORD },
    { name: 'the root', value: root.signSecret.subarray(0, 32) },
  ]
  await checkSecrets(at.folder, { secrets, texts })

  // The check finds what there is to be found: each kind, in each kind of place.
  for (const [secret, place] of [
    [admin, 'gateway.log'],
    [`"${PASSWORD}"`, 'node.log'],
    [Buffer.from(root.signSecret.subarray(0, 32)).toString('hex'), 'enrol.log'],
    [token, undefined],
  ] as const) {
    const planted = `something with ${secret} in it`
    if (place) await writeFile(join(at.folder, place), planted)
    const error = (await thrown(() =>
      checkSecrets(at.folder, { secrets, texts: place ? texts : [{ where: 'an answer', text: planted }] }),
    )) as Error
    assert.match(error.message, new RegExp(`secrets where people look: .* in ${place ?? 'an answer'}`))
    if (place) await writeFile(join(at.folder, place), '')
  }
})

/** A launcher's child is the command; both are to be looked at. */
async function childrenOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '')
  return text.split(' ').filter(Boolean).map(Number)
}

test.run()
