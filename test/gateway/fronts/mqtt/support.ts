// What the MQTT tests share: brokers to run against, clients of integrators, a handoff that scripted nodes act out. Not
// a test itself.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { chmod, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import mqtt, { type IClientOptions, type IPublishPacket, type MqttClient } from 'mqtt'
import { generateCommandKey, signCommand } from '../../../../crypto/command-keys.ts'
import type { MqttOptions } from '../../../../gateway/fronts/mqtt/start.ts'
import { type Action, topicsOf } from '../../../../mqtt/topics.ts'
import { eventually, within } from '../../../../ops/deadline.ts'
import { createServerCertificate } from '../../../../transport/self-signed.ts'
import { tempFolder } from '../../../support/temp-folder.ts'
import { emptyReport, type TestNode, vm, type World } from '../../fixture.ts'

const TENANT = 'acme'
export const topics = topicsOf(TENANT)
export const nocKey = generateCommandKey('noc')
export const readerKey = generateCommandKey('reader')
export const PASSWORDS = { noc: 'noc-secret', telco: 'telco-secret', eye: 'eye-secret' } as const
export type Who = keyof typeof PASSWORDS
const MS = 8_000

const commandKeys: MqttOptions['commandKeys'] = [
  { name: 'noc', publicKey: nocKey.publicKey, actions: ['start', 'prestage', 'cancel', 'pin'] },
  { name: 'reader', publicKey: readerKey.publicKey, actions: [] },
]
export const embedded = (): MqttOptions => ({
  tenant: TENANT,
  commandKeys,
  broker: {
    mode: 'embedded',
    listen: { host: '127.0.0.1', port: 0 },
    users: [
      { name: 'noc', password: PASSWORDS.noc, may: ['command'] },
      { name: 'telco', password: PASSWORDS.telco, may: ['measure'] },
      { name: 'eye', password: PASSWORDS.eye, may: ['observe'] },
    ],
  },
})

// --- Mosquitto
// ---------------------------------------------------------------------------------------------------------------------

function has(program: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${program}`], { env: { PATH: `${process.env['PATH']}:/usr/sbin:/sbin` } })
    return true
  } catch {
    return false
  }
}
const PATH = `${process.env['PATH']}:/usr/sbin:/sbin`
const missing = ['mosquitto', 'mosquitto_passwd', 'mosquitto_pub', 'mosquitto_sub'].filter(program => !has(program))
/** Why a test with Mosquitto cannot run here; undefined when it can. */
export const noMosquitto = missing.length > 0 ? `${missing.join(', ')} not installed (Debian: mosquitto, mosquitto-clients)` : undefined

export type Mosquitto = {
  port: number
  tlsPort: number
  stop(): Promise<void>
  start(): Promise<void>
  log(): string
  /** As the gateway: by client certificate over TLS with MQTT 5, or by password with 3.1.1. */
  options(how: 'tls' | 'password'): MqttOptions
} & AsyncDisposable

const ACL = `
user godwit
topic readwrite ${topics.root}/#

user noc
topic write ${topics.root}/cmd/handoff/+
topic read ${topics.root}/gateway/+/state
topic read ${topics.root}/site/+/state
topic read ${topics.root}/vm/+/placement
topic read ${topics.root}/handoff/+/+
topic read ${topics.root}/reply/noc

user telco
topic write ${topics.root}/ue/+/meas/+
topic write ${topics.root}/site/+/link/+

user eye
topic read ${topics.root}/gateway/+/+
topic read ${topics.root}/site/+/+
topic read ${topics.root}/site/+/link/+
topic read ${topics.root}/vm/+/placement
topic read ${topics.root}/handoff/+/+
`

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}

/**
 * A Mosquitto of our own on loopback: passwords on one port, client certificates over TLS on the other, access lists
 * for both.
 */
export async function mosquitto(): Promise<Mosquitto> {
  const folder = await tempFolder()
  const file = (name: string) => join(folder.path, name)
  const [port, tlsPort] = [await freePort(), await freePort()]
  const [server, client] = [createServerCertificate(), createServerCertificate()]
  await writeFile(file('server.pem'), server.certificatePem)
  await writeFile(file('server.key'), server.keyPem)
  await writeFile(file('client.pem'), client.certificatePem)
  await writeFile(file('acl'), ACL)
  await writeFile(file('passwords'), '')
  for (const [name, password] of [...Object.entries(PASSWORDS), ['godwit', 'gateway-secret']])
    execFileSync('mosquitto_passwd', ['-b', file('passwords'), name!, password!], { stdio: 'ignore' })
  for (const name of ['acl', 'passwords', 'server.key']) await chmod(file(name), 0o600)
  const lines = [
    'persistence false',
    'allow_anonymous false',
    `password_file ${file('passwords')}`,
    `acl_file ${file('acl')}`,
    ...(process.getuid?.() === 0 ? ['user root'] : []),
    `listener ${port} 127.0.0.1`,
    `listener ${tlsPort} 127.0.0.1`,
    `cafile ${file('client.pem')}`,
    `certfile ${file('server.pem')}`,
    `keyfile ${file('server.key')}`,
    'require_certificate true',
    'use_identity_as_username true',
  ]
  await writeFile(file('mosquitto.conf'), `${lines.join('\n')}\n`)
  let child: ChildProcess | undefined
  let text = ''
  const start = async () => {
    child = spawn('mosquitto', ['-c', file('mosquitto.conf')], { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, PATH } })
    child.stderr?.on('data', chunk => (text += chunk))
    await eventually(() => canConnect(port), { ms: MS, everyMs: 20, what: `mosquitto:\n${text}` })
  }
  const stop = async () => {
    const dying = child
    child = undefined
    if (!dying || dying.exitCode !== null) return
    const exited = new Promise(resolve => dying.once('exit', resolve))
    dying.kill('SIGTERM')
    await within(exited, { ms: MS, what: 'the end of mosquitto' })
  }
  await start()
  const options = (how: 'tls' | 'password'): MqttOptions => {
    const byTls = {
      url: `mqtts://127.0.0.1:${tlsPort}`,
      tls: { ca: server.certificatePem, certificate: client.certificatePem, key: client.keyPem, servername: 'localhost' },
      version: 'auto' as const,
    }
    const byPassword = { url: `mqtt://127.0.0.1:${port}`, username: 'godwit', password: 'gateway-secret', version: '3.1.1' as const }
    const target = how === 'tls' ? byTls : byPassword
    return { tenant: TENANT, commandKeys, broker: { mode: 'external', target }, backoff: { firstMs: 600, maxMs: 600 } }
  }
  return {
    port,
    tlsPort,
    start,
    stop,
    log: () => text,
    options,
    async [Symbol.asyncDispose]() {
      await stop()
      await folder[Symbol.asyncDispose]()
    },
  }
}

async function canConnect(port: number): Promise<true | undefined> {
  const { connect } = await import('node:net')
  return new Promise(resolve => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(undefined))
  })
}

// --- Integrators' clients
// ---------------------------------------------------------------------------------------------------------------------

type Message = { topic: string; text: string; packet: IPublishPacket; atMs: number }
export type TestClient = {
  client: MqttClient
  messages: Message[]
  of(kind: string): Message[]
  /** The first message, come or to come, that fits. */
  wait<T = Record<string, unknown>>(fits: (topic: string, payload: T) => boolean, what: string): Promise<T>
  command(action: Action, fields: object, more?: CommandOptions): Promise<Record<string, unknown>>
  publish(topic: string, payload: unknown, more?: { retain?: boolean; qos?: 0 | 1; properties?: object }): Promise<void>
} & AsyncDisposable
type CommandOptions = { key?: typeof nocKey; retain?: boolean; mangle?: (payload: Record<string, unknown>) => unknown; ms?: number }

export const draft = (fields: object) => ({
  commandId: randomUUID(),
  vmId: 'vm-1',
  reason: 'a test',
  expectedEpoch: 1,
  notAfter: new Date(Date.now() + 20_000).toISOString(),
  replyTo: topics.build('reply', { clientId: 'noc' }),
  ...fields,
})

export async function connectAs(
  who: Who | { name: string; password: string },
  { url, version, subscriptions = [], options = {} }: { url: string; version: 4 | 5; subscriptions?: string[]; options?: IClientOptions },
): Promise<TestClient> {
  const { name, password } = typeof who === 'string' ? { name: who, password: PASSWORDS[who] } : who
  const client = mqtt.connect(url, {
    username: name,
    password,
    protocolVersion: version,
    clientId: `${name}-${randomUUID().slice(0, 8)}`,
    reconnectPeriod: 50,
    ...options,
  })
  const connected = new Promise<void>((resolve, reject) => {
    client.once('connect', () => resolve())
    client.on('error', reject)
    client.once('close', () => reject(new Error('closed')))
  })
  await within(connected, { ms: MS, what: `the connection of ${name}` }).catch(error => {
    client.end(true)
    throw error
  })
  const messages: Message[] = []
  client.on('message', (topic, payload, packet) => messages.push({ topic, text: payload.toString(), packet, atMs: Date.now() }))
  client.on('error', () => {})
  for (const topic of subscriptions) await within(client.subscribeAsync(topic, { qos: 1 }), { ms: MS, what: `subscription ${topic}` })
  return testClient(client, messages)
}

function testClient(client: MqttClient, messages: Message[]): TestClient {
  const parse = <T>(text: string): T => (text === '' ? {} : JSON.parse(text)) as T
  const wait = <T>(fits: (topic: string, payload: T) => boolean, what: string): Promise<T> =>
    eventually(
      () => {
        for (const { topic, text } of messages) {
          const payload = parse<T>(text)
          if (fits(topic, payload)) return payload
        }
        return undefined
      },
      { ms: MS, everyMs: 10, what: `${what}; came: ${messages.map(({ topic }) => topic.slice(topics.root.length)).join(' ')}` },
    )
  const publish = async (
    topic: string,
    payload: unknown,
    { retain = false, qos = 1, properties }: Parameters<TestClient['publish']>[2] = {},
  ) => {
    const bytes = typeof payload === 'string' || Buffer.isBuffer(payload) ? payload : JSON.stringify(payload)
    const sent = client.publishAsync(topic, bytes, { qos, retain, ...(properties ? { properties } : {}) })
    await within(sent, { ms: MS, what: `PUBLISH ${topic}` })
  }
  return {
    client,
    messages,
    wait,
    publish,
    of: kind => messages.filter(({ topic }) => topics.parse(topic)?.kind === kind),
    async command(action, fields, { key = nocKey, retain = false, mangle } = {}) {
      const payload = signCommand(key, topics, action, draft(fields))
      const sent = mangle ? mangle(payload as Record<string, unknown>) : payload
      const before = messages.length
      await publish(topics.build(action), sent, { retain })
      const { commandId } = payload
      const isReply = ({ topic, text }: Message) =>
        topics.parse(topic)?.kind === 'reply' && parse<{ commandId: string }>(text).commandId === commandId
      return eventually(
        () => {
          const found = messages.slice(before).find(isReply)
          return found ? parse<Record<string, unknown>>(found.text) : undefined
        },
        { ms: MS, everyMs: 10, what: `a reply to ${action} ${commandId}` },
      )
    },
    async [Symbol.asyncDispose]() {
      await within(client.endAsync(true), { ms: MS, what: 'the end of a client' }).catch(() => {})
    },
  }
}

export const codeOfReply = (reply: Record<string, unknown>) => (reply['problem'] as { code: string } | undefined)?.code ?? reply['status']

// --- A handoff
// ---------------------------------------------------------------------------------------------------------------------

type Stage = { a: TestNode; b: TestNode }

export async function stage(w: World): Promise<Stage> {
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  return { a, b }
}

export const PHASE_ORDER = ['proposed', 'precopy', 'switchover', 'completed'] as const
const pause = (ms: number) => new Promise(resolve => setTimeout(resolve, ms))

/**
 * Acts out the migration that has been started at source `a`, up to and with its end. `before` is called ahead of each
 * phase.
 */
export async function actOut(
  { a, b }: Stage,
  before: (phase: (typeof PHASE_ORDER)[number]) => Promise<void> = async () => {},
): Promise<string> {
  await eventually(() => a.started.at(-1), { ms: MS, everyMs: 5, what: 'migration.start' })
  const { migrationId, vm: name, epoch } = a.started.at(-1)!.plan
  await before('precopy')
  const facts = {
    round: 1,
    bytesTotal: 1 << 20,
    bytesSent: 1000,
    wireBytes: 500,
    rateBytesPerSecond: 1e6,
    dirtyBytesPerSecond: 10,
    etaMs: 100,
  }
  a.link.progress({ migrationId, side: 'source', phase: 'precopy', ...facts })
  await pause(20)
  await before('switchover')
  a.link.progress({ migrationId, side: 'source', phase: 'switchover', round: 2 })
  await pause(20)
  a.link.progress({ migrationId, side: 'source', phase: 'committed' })
  await before('completed')
  b.vms = [vm(name, { epoch: epoch + 1 })]
  a.vms = []
  const report = { ...emptyReport(migrationId), vm: name, downtimeMs: 33, rounds: 2, wireBytes: 500 }
  b.link.report({ migrationId, side: 'target', outcome: 'completed', report })
  a.link.report({ migrationId, side: 'source', outcome: 'completed', report })
  b.announce()
  a.announce()
  return migrationId
}

/** The value of a counter with these labels, from the gateway's metrics. */
export async function counted(w: World, name: string, labels: Record<string, string>): Promise<number> {
  const response = await fetch(`${w.gateway.adminUrl}/metrics`, { headers: { authorization: 'Bearer a-test-token' } })
  const wanted = Object.entries(labels).map(([key, value]) => `${key}="${value}"`)
  const line = (await response.text())
    .split('\n')
    .find(text => text.startsWith(`godwit_gateway_${name}{`) && wanted.every(part => text.includes(part)))
  return Number(line?.split(' ').at(-1) ?? 0)
}
