// The throughput of the gateway: source site -> gateway -> target site on loopback, three processes. Enters: seconds
// for each engine. Leaves: Mbit/s of relayed payload, and the gateway's peak memory. The nodes write and read raw
// bytes: bench/pipeline.ts measures sealing. The engine encrypts both hops, as always.

import { type ChildProcess, fork } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createRoot, issueCertificate, newSerial, type Root, type SubjectRole } from '../crypto/certificate.ts'
import { generateSiteKeys, loadSodium } from '../crypto/identity.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { startGateway } from '../gateway/gateway.ts'
import { nowSeconds } from '../ops/clock.ts'
import { within } from '../ops/deadline.ts'
import { requestJson } from '../ops/http-client.ts'
import { openStore } from '../ops/store.ts'
import { createQuicEngine } from '../transport/quic.ts'
import { createTlsEngine } from '../transport/tls.ts'
import { silentLog } from '../wire/log.ts'
import type { RelayAnswer, RelayTask } from './relay-node.ts'

type RelayResult = {
  engine: 'quic' | 'tls'
  processes: 3
  streams: number
  dataConnections: number
  relayedBytes: number
  megabitsPerSecond: number
  gatewayRssPeakBytes: number
}

const ENGINES = { quic: createQuicEngine, tls: createTlsEngine }
const STREAMS = 4
const TOKEN = 'bench'

function issue(root: Root, role: SubjectRole, id: string): LinkIdentity {
  const keys = generateSiteKeys()
  const now = nowSeconds()
  const { signPublic, boxPublic } = keys
  return {
    keys,
    certificate: issueCertificate(root, {
      role,
      id,
      signPublic,
      boxPublic,
      notBefore: now - 60,
      notAfter: now + 3600,
      serial: newSerial(),
    }),
  }
}

/** The next message of this kind from a node; rejects if its process ends first. */
function answerOf<K extends RelayAnswer['kind']>(child: ChildProcess, kind: K, ms: number): Promise<Extract<RelayAnswer, { kind: K }>> {
  const come = new Promise<Extract<RelayAnswer, { kind: K }>>((resolve, reject) => {
    child.on('message', (message: RelayAnswer) => {
      if (message.kind === kind) resolve(message as Extract<RelayAnswer, { kind: K }>)
    })
    child.once('exit', code => reject(new Error(`a node of the benchmark ended with ${code}`)))
  })
  return within(come, { ms, what: `'${kind}' of a bench node` })
}

async function benchEngine(engine: 'quic' | 'tls', seconds: number): Promise<RelayResult> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-bench-'))
  const root = createRoot()
  const store = await openStore(folder)
  const gateway = await startGateway({
    identity: issue(root, 'gateway', 'gw'),
    rootPublic: root.signPublic,
    version: 'bench',
    listen: [{ engine: ENGINES[engine](), host: '127.0.0.1', port: 0 }],
    admin: { host: '127.0.0.1', port: 0, token: TOKEN },
    store,
    log: silentLog,
  })
  const nodes: ChildProcess[] = []
  const dataConnections = 0
  const node = async (site: RelayTask['site']): Promise<ChildProcess> => {
    const child = fork(new URL('relay-node.ts', import.meta.url), {
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    nodes.push(child)
    const port = gateway.listeners[0]?.port ?? 0
    const identity = issue(root, 'site', site)
    const task: RelayTask = { site, engine, port, identity, rootPublic: root.signPublic, streams: STREAMS, dataConnections, seconds }
    child.send(task)
    await answerOf(child, 'online', 20_000)
    return child
  }
  let rssPeak = 0
  const watch = setInterval(() => {
    rssPeak = Math.max(rssPeak, process.memoryUsage.rss())
  }, 50)
  try {
    const [target] = await Promise.all([node('target'), node('source')])
    const request = { url: gateway.adminUrl, token: TOKEN, method: 'POST', path: '/v1/migrations' }
    const done = answerOf(target, 'done', seconds * 1000 + 30_000)
    await requestJson({ ...request, body: { vm: 'bench', to: 'target', streams: STREAMS } })
    const { bytes, ms } = await done
    const megabitsPerSecond = Math.round((bytes * 8) / ms / 1000)
    return { engine, processes: 3, streams: STREAMS, dataConnections, relayedBytes: bytes, megabitsPerSecond, gatewayRssPeakBytes: rssPeak }
  } finally {
    clearInterval(watch)
    for (const child of nodes) child.kill()
    await gateway.close()
    await store.close()
    await rm(folder, { recursive: true, force: true })
  }
}

/** Relays for `seconds` over each available engine, and prints (JSON lines or text). */
export async function benchRelay({ seconds = 3, json = false }: { seconds?: number; json?: boolean } = {}): Promise<RelayResult[]> {
  await loadSodium()
  const results: RelayResult[] = []
  for (const engine of ['quic', 'tls'] as const) {
    const loads = await ENGINES[engine]().available()
    if (!loads.ok) {
      console.log(
        json ? JSON.stringify({ bench: 'relay', engine, skipped: loads.reason }) : `relay over ${engine}: skipped: ${loads.reason}`,
      )
      continue
    }
    const result = await benchEngine(engine, seconds)
    results.push(result)
    const rssMiB = Math.round(result.gatewayRssPeakBytes / 2 ** 20)
    console.log(
      json
        ? JSON.stringify({ bench: 'relay', ...result })
        : `relay over ${engine}: ${result.megabitsPerSecond} Mbit/s (${result.streams} streams, 3 processes, gateway at most ${rssMiB} MiB)`,
    )
  }
  return results
}
