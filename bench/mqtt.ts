// The gateway under a telco's measurements: 1,000 a second through a broker, with signed commands among them. Enters:
// seconds and rate. Leaves: for Mosquitto (if installed) and the embedded broker: lost measurements, the lag from the
// sender to the gateway's decision (p50, p99), the lag of commands until their reply, and the gateway's memory over
// time. Sender and broker (Mosquitto) are separate processes; this process is the gateway and the sender of commands.

import { type ChildProcess, fork, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { createRoot, issueCertificate, newSerial } from '../crypto/certificate.ts'
import { generateCommandKey, signCommand } from '../crypto/command-keys.ts'
import { generateSiteKeys, loadSodium } from '../crypto/identity.ts'
import type { MqttOptions } from '../gateway/fronts/mqtt/start.ts'
import { type Gateway, startGateway } from '../gateway/gateway.ts'
import { createRecords } from '../gateway/store/records.ts'
import { connectMqtt, type MqttLink } from '../mqtt/client.ts'
import { topicsOf } from '../mqtt/topics.ts'
import { nowSeconds } from '../ops/clock.ts'
import { eventually, sleep, within } from '../ops/deadline.ts'
import { readArguments, runScript, wholeNumber } from '../ops/script.ts'
import { openStore } from '../ops/store.ts'
import { createMemoryEngine } from '../transport/memory.ts'
import { silentLog } from '../wire/log.ts'
import { nowMicros, type SenderAnswer, type SenderTask } from './mqtt-sender.ts'

const TENANT = 'bench'
const USERS = 1000
const COMMANDS_PER_SECOND = 5
const topics = topicsOf(TENANT)
const key = generateCommandKey('bench')
const commandKeys: MqttOptions['commandKeys'] = [{ name: 'bench', publicKey: key.publicKey, actions: ['cancel'] }]

type MqttBenchResult = {
  broker: 'mosquitto' | 'embedded'
  perSecond: number
  seconds: number
  sent: number
  taken: number
  lagMs: { p50: number; p99: number; max: number }
  commands: { sent: number; answered: number; p50Ms: number; p99Ms: number }
  /** RSS of the gateway's process in MiB: after a fifth of the time, at the end, and the peak. */
  rssMiB: { early: number; late: number; peak: number }
  /** The heap after a garbage collection: after a fifth of the time, and at the end. */
  heldMiB: { early: number; late: number }
}

const percentile = (sorted: number[], share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
const mib = (bytes: number) => Math.round(bytes / 2 ** 20)
const round = (ms: number) => Math.round(ms * 10) / 10

/** Mosquitto on loopback without passwords: tests cover its access lists. Undefined if it is not installed. */
async function startMosquitto(folder: string): Promise<{ url: string; child: ChildProcess } | undefined> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  const file = join(folder, 'mosquitto.conf')
  await writeFile(
    file,
    `listener ${port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 10000\nset_tcp_nodelay true\n`,
  )
  const child = spawn('mosquitto', ['-c', file], { stdio: 'ignore', env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin` } })
  const failed = new Promise<true>(resolve => child.once('error', () => resolve(true)))
  if (await Promise.race([failed, sleep(300)])) return undefined
  return { url: `mqtt://127.0.0.1:${port}`, child }
}

async function startBenchGateway(folder: string, mqtt: MqttOptions, onLagMicros: (micros: number) => void) {
  const root = createRoot()
  const keys = generateSiteKeys()
  const now = nowSeconds()
  const { signPublic, boxPublic } = keys
  const claims = {
    role: 'gateway',
    id: 'gw',
    signPublic,
    boxPublic,
    notBefore: now - 60,
    notAfter: now + 3600,
    serial: newSerial(),
  } as const
  const store = await openStore(join(folder, 'store'))
  // The gateway only accepts measurements of known sites and VMs: a stored site is enough.
  const host = { accelerators: ['tcg' as const], memoryFreeBytes: 1e9, diskFreeBytes: 1e9, vcpus: 2 }
  const vms = Array.from({ length: USERS }, (_, at) => ({
    name: `vm-${at}`,
    state: 'running' as const,
    epoch: 1,
    memoryBytes: 1 << 20,
    vcpus: 1,
  }))
  await createRecords(store).saveSite({ site: 'a', version: 'bench', host, vms, lastSeenAt: 0, certificateNotAfter: 0 })
  const gateway = await startGateway({
    identity: { keys, certificate: issueCertificate(root, claims) },
    rootPublic: root.signPublic,
    version: 'bench',
    listen: [{ engine: createMemoryEngine(), host: '127.0.0.1', port: 0 }],
    admin: { host: '127.0.0.1', port: 0, token: 'bench' },
    store,
    mqtt,
    onMeasurement: measurement => {
      if (measurement.kind === 'latency') onLagMicros(nowMicros() - measurement.value.seq)
    },
    log: silentLog,
  })
  return { gateway, store }
}

/** Sends commands that are rejected (unknown handoff) after all checks, and counts their replies. */
function commander(url: string, credentials: { username?: string; password?: string }) {
  const pending = new Map<string, number>()
  const lags: number[] = []
  const replyTo = topics.build('reply', { clientId: 'noc' })
  const link: MqttLink = connectMqtt({
    target: { url, ...credentials, version: 'auto' },
    clientId: 'bench-noc',
    subscriptions: [{ topic: replyTo, qos: 1 }],
    onMessage({ payload }) {
      const { commandId } = JSON.parse(new TextDecoder().decode(payload)) as { commandId: string }
      const sentAt = pending.get(commandId)
      if (sentAt !== undefined) lags.push(performance.now() - sentAt)
      pending.delete(commandId)
    },
    firstOrNever: true,
    log: silentLog,
  })
  let sent = 0
  return {
    link,
    lags,
    pending,
    sent: () => sent,
    send() {
      const payload = {
        commandId: randomUUID(),
        vmId: 'vm-1',
        reason: 'bench',
        expectedEpoch: 1,
        notAfter: new Date(Date.now() + 20_000).toISOString(),
        replyTo,
      }
      pending.set(payload.commandId, performance.now())
      sent += 1
      const signed = JSON.stringify(signCommand(key, topics, 'cancel', payload))
      link.publish({ topic: topics.build('cancel'), payload: signed, qos: 1, retained: false, expirySeconds: 20 }).catch(() => {})
    },
  }
}

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** Measures the heap after a garbage collection at a fifth of the time and at the end; RSS all the time. */
function watchMemory(seconds: number) {
  const rss: number[] = []
  const heldMiB = () => {
    collect()
    return Math.round(process.memoryUsage().heapUsed / 2 ** 18) / 4
  }
  let early = Number.NaN
  const sampling = setInterval(() => rss.push(process.memoryUsage.rss()), 100)
  const first = setTimeout(() => {
    early = heldMiB()
  }, seconds * 200)
  return () => {
    clearInterval(sampling)
    clearTimeout(first)
    const rssMiB = { early: mib(rss[Math.floor(rss.length / 5)] ?? 0), late: mib(rss.at(-1) ?? 0), peak: mib(Math.max(...rss)) }
    return { rssMiB, heldMiB: { early, late: heldMiB() } }
  }
}

type Options = { perSecond: number; seconds: number }

async function run(broker: MqttBenchResult['broker'], { perSecond, seconds }: Options): Promise<MqttBenchResult | undefined> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-bench-'))
  const mosquitto = broker === 'mosquitto' ? await startMosquitto(folder) : undefined
  // Allocated once at the start, so that the benchmark's own data does not count as the gateway's memory.
  const notes = { lags: new Float64Array(perSecond * seconds), count: 0 }
  let gateway: Gateway | undefined
  let store: Awaited<ReturnType<typeof startBenchGateway>>['store'] | undefined
  const sender = fork(new URL('mqtt-sender.ts', import.meta.url), { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
  try {
    if (broker === 'mosquitto' && !mosquitto) return undefined
    const users = { telco: 'telco-secret', noc: 'noc-secret' }
    const embedded = {
      mode: 'embedded' as const,
      listen: { host: '127.0.0.1', port: 0 },
      users: [
        { name: 'telco', password: users.telco, may: ['measure' as const] },
        { name: 'noc', password: users.noc, may: ['command' as const] },
      ],
    }
    const external = { mode: 'external' as const, target: { url: mosquitto?.url, version: 'auto' as const } }
    const mqtt: MqttOptions = { tenant: TENANT, commandKeys, broker: mosquitto ? external : embedded }
    ;({ gateway, store } = await startBenchGateway(folder, mqtt, micros => {
      if (notes.count < notes.lags.length) notes.lags[notes.count++] = micros / 1000
    }))
    await eventually(() => gateway?.mqtt?.up || undefined, { ms: 10_000, what: 'the gateway at its broker' })
    const url = gateway.mqtt?.url ?? ''
    const noc = commander(url, mosquitto ? {} : { username: 'noc', password: users.noc })
    await noc.link.whenUp({ timeoutMs: 10_000 })
    const told = {
      url,
      tenant: TENANT,
      perSecond,
      seconds,
      users: USERS,
      ...(mosquitto ? {} : { username: 'telco', password: users.telco }),
    }
    const { sent, memory } = await drive(sender, told, noc)
    await eventually(() => (notes.count >= sent && noc.pending.size === 0 ? true : undefined), { ms: 5_000, what: 'the last ones' }).catch(
      () => {},
    )
    await noc.link.close()
    const [sorted, answers] = [[...notes.lags.subarray(0, notes.count)].sort((a, b) => a - b), noc.lags.sort((a, b) => a - b)]
    return {
      broker,
      perSecond,
      seconds,
      sent,
      taken: sorted.length,
      lagMs: { p50: round(percentile(sorted, 0.5)), p99: round(percentile(sorted, 0.99)), max: round(sorted.at(-1) ?? Number.NaN) },
      commands: {
        sent: noc.sent(),
        answered: answers.length,
        p50Ms: round(percentile(answers, 0.5)),
        p99Ms: round(percentile(answers, 0.99)),
      },
      ...memory,
    }
  } finally {
    sender.kill()
    await gateway?.close()
    await store?.close()
    mosquitto?.child.kill()
    await rm(folder, { recursive: true, force: true })
  }
}

/** Runs the sender with commands in between, and measures memory. */
async function drive(sender: ChildProcess, task: SenderTask, noc: ReturnType<typeof commander>) {
  const done = new Promise<number>((resolve, reject) => {
    sender.on('message', (message: SenderAnswer) => {
      if (message.kind === 'done') resolve(message.sent)
    })
    sender.once('exit', code => reject(new Error(`the sender of the benchmark ended with ${code}`)))
  })
  sender.send(task)
  const memory = watchMemory(task.seconds)
  const timer = setInterval(() => noc.send(), 1000 / COMMANDS_PER_SECOND)
  try {
    const sent = await within(done, { ms: task.seconds * 1000 + 30_000, what: 'the sender of the benchmark' })
    return { sent, memory: memory() }
  } finally {
    clearInterval(timer)
  }
}

/** Runs for `seconds` with each available broker, and prints the result. */
export async function benchMqtt({
  seconds = 10,
  perSecond = 1000,
  json = false,
}: Partial<Options> & { json?: boolean } = {}): Promise<MqttBenchResult[]> {
  await loadSodium()
  const results: MqttBenchResult[] = []
  for (const broker of ['mosquitto', 'embedded'] as const) {
    const result = await run(broker, { seconds, perSecond })
    if (!result) {
      if (!json) console.log(`mqtt with ${broker}: skipped: it is not installed`)
      continue
    }
    results.push(result)
    const { sent, taken, lagMs, commands, rssMiB, heldMiB } = result
    const text =
      `mqtt with ${broker}: ${perSecond}/s for ${seconds} s: ${taken} of ${sent} measurements; lag ${lagMs.p50} ms p50, ${lagMs.p99} ms p99, ${lagMs.max} ms max; ` +
      `${commands.answered} of ${commands.sent} commands answered, ${commands.p50Ms} ms p50, ${commands.p99Ms} ms p99; ` +
      `gateway ${rssMiB.early} -> ${rssMiB.late} MiB (heap after a collection ${heldMiB.early} -> ${heldMiB.late})`
    console.log(json ? JSON.stringify({ bench: 'mqtt', ...result }) : text)
  }
  return results
}

if (process.argv[1] === import.meta.filename) {
  await runScript('Usage: node bin/run.js bench/mqtt.ts [--seconds N] [--rate N] [--json]', async () => {
    const { values } = readArguments({
      options: {
        seconds: { type: 'string', default: '10' },
        rate: { type: 'string', default: '1000' },
        json: { type: 'boolean', default: false },
      },
    })
    const seconds = wholeNumber('--seconds', values.seconds, { min: 1, max: 86_400 })
    const perSecond = wholeNumber('--rate', values.rate, { min: 1, max: 1_000_000 })
    await benchMqtt({ seconds, perSecond, json: values.json })
  })
}
