// One site of bench/relay.ts as a process: the source writes as fast as it can, the target reads and counts. Enters:
// one IPC message. Leaves: 'online', then (target) the received bytes and their time.
import { loadSodium } from '../crypto/identity.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { connectLink } from '../edge-node/link/link.ts'
import { createQuicEngine } from '../transport/quic.ts'
import { createTlsEngine } from '../transport/tls.ts'
import type { Engine, Stream } from '../transport/types.ts'
import { silentLog } from '../wire/log.ts'
import { indexOf, pages } from '../wire/roles.ts'

const VM = 'bench'
/** Size of one write of a page stream: a few sealed records. */
const WRITE_BYTES = 256 * 1024

export type RelayTask = {
  site: 'source' | 'target'
  engine: 'quic' | 'tls'
  port: number
  identity: LinkIdentity
  rootPublic: Uint8Array
  streams: number
  dataConnections: number
  seconds: number
}
export type RelayAnswer = { kind: 'online' } | { kind: 'done'; bytes: number; ms: number }

const answer = (message: RelayAnswer) => process.send?.(message)

async function run({ site, engine: name, port, identity, rootPublic, streams, dataConnections, seconds }: RelayTask): Promise<void> {
  await loadSodium()
  const engine: Engine = name === 'quic' ? createQuicEngine() : createTlsEngine()
  const counted = { bytes: 0, startedAt: 0, left: streams }
  const vms = site === 'source' ? [{ name: VM, state: 'running' as const, epoch: 1, memoryBytes: 0, vcpus: 1 }] : []
  const link = connectLink({
    dial: async ({ signal }) => ({
      connection: await engine.connect({ host: '127.0.0.1', port, signal }),
      selection: { engine: name, tried: [] },
    }),
    identity,
    rootPublic,
    site,
    version: 'bench',
    describe: async () => ({ host: { accelerators: [], memoryFreeBytes: 0, diskFreeBytes: 0, vcpus: 1 }, vms, migrations: [] }),
    handlers: {
      prepare: async () => {},
      start: async ({ plan }) => {
        for (let n = 0; n < streams; n++)
          link.openRelayStream({ sessionId: plan.migrationId, index: indexOf(pages(n)), attempt: 1 }).then(stream => send(stream, seconds))
      },
      cancel: async () => {},
    },
    onRelayStream: (_join, stream) => receive(stream, counted),
    dataConnections,
    log: silentLog,
  })
  await link.whenOnline()
  answer({ kind: 'online' })
}

async function send(stream: Stream, seconds: number): Promise<void> {
  const bytes = new Uint8Array(WRITE_BYTES)
  for (const end = performance.now() + seconds * 1000; performance.now() < end; ) await stream.write(bytes)
  await stream.end()
}

async function receive(stream: Stream, counted: { bytes: number; startedAt: number; left: number }): Promise<void> {
  counted.startedAt ||= performance.now()
  for (let chunk = await stream.read(); chunk; chunk = await stream.read()) counted.bytes += chunk.length
  if (--counted.left === 0) answer({ kind: 'done', bytes: counted.bytes, ms: performance.now() - counted.startedAt })
}

process.on('message', (task: RelayTask) => {
  run(task).catch(error => {
    console.error(error)
    process.exit(1)
  })
})
