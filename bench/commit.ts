// The cost of the durable commit: a tiny real guest migrates repeatedly, with durable records (as always), and without
// (the same store without sync, only in this file). Source and target run the real code over QUIC, without a gateway.
// Enters: number of migrations. Leaves: downtime measured by one external clock, from the STOP of the source QEMU to
// the RESUME of the target QEMU, and its parts from the report.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { generateSiteKeys } from '../crypto/identity.ts'
import { acceptStreams } from '../edge-node/link/incoming.ts'
import { createJournal } from '../edge-node/migration/journal.ts'
import { startSource } from '../edge-node/migration/source.ts'
import { startTarget, type TargetMigration } from '../edge-node/migration/target.ts'
import { bootSectorDisk } from '../edge-node/vm/accelerators.ts'
import { type RunningVm, startMachine } from '../edge-node/vm/machine.ts'
import { findQemu, type QemuInfo } from '../edge-node/vm/qemu.ts'
import { parseSpec } from '../edge-node/vm/spec.ts'
import { within } from '../ops/deadline.ts'
import { openStore, type Store } from '../ops/store.ts'
import { startUdpProxy } from '../sim-network/udp-proxy.ts'
import { createQuicEngine } from '../transport/quic.ts'
import type { Connection } from '../transport/types.ts'
import type { Plan, Report } from '../wire/control.ts'
import { encodeFrame } from '../wire/frame.ts'
import { silentLog } from '../wire/log.ts'
import { toJson } from '../wire/schema.ts'
import { FRAME } from '../wire/types.ts'

const HOST = '127.0.0.1'
/** Increments the u32 at 0x8000 for ever. */
const COUNTER = Uint8Array.of(0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf9)
const SPEC = 'name: tiny\nmemory: 32MiB\nmachine: pc-i440fx-9.0\ndisks: [{ file: boot.img, mode: readonly, format: raw }]\nserial: false\n'
const LINK_RTT_MS = 40
const MOVE_MS = 30_000

type Cost = { link: string; durable: boolean; migrations: number; downtimeMs: number; parts: Record<string, number> }

type Bed = {
  dir: string
  qemu: QemuInfo
  connection: Connection
  stores: { source: Store; target: Store }
  setTarget(target: TargetMigration): void
}

/** With `isDurable` false every write resolves at once without being durable. */
const unsynced = (store: Store): Store => ({
  ...store,
  put: (table, key, value) => store.put(table, key, value, { sync: false }),
  batch: writes => store.batch(writes, { sync: false }),
})

async function openBed(dir: string, rttMs: number): Promise<Bed & { close(): Promise<void> }> {
  await mkdir(join(dir, 'images'), { recursive: true })
  await writeFile(join(dir, 'images', 'boot.img'), bootSectorDisk(COUNTER))
  const engine = createQuicEngine()
  const listener = await engine.listen({ host: HOST, port: 0 })
  const half = { rate: { bitsPerSecond: 1e9 }, delayMs: rttMs / 2, queueBytes: 8 * 1024 * 1024 }
  const proxy =
    rttMs > 0 ? await startUdpProxy({ listen: { host: HOST, port: 0 }, upstream: listener.address, up: half, down: half }) : undefined
  let target: TargetMigration | undefined
  const accepted = listener.accept()
  const connection = await engine.connect({ ...(proxy?.address ?? listener.address) })
  const other = (await within(accepted, { ms: 10_000, what: 'the connection' }))!
  const onRelayStream: Parameters<typeof acceptStreams>[1]['onRelayStream'] = (relay, stream) =>
    target?.accept(relay.index, relay.attempt, stream)
  acceptStreams(other, { onRelayStream }, silentLog).catch(() => {})
  const stores = { source: await openStore(join(dir, 'source')), target: await openStore(join(dir, 'target')) }
  return {
    ...{ dir, qemu: await findQemu(), connection, stores },
    setTarget(next) {
      target = next
    },
    async close() {
      await connection.close('over')
      await listener.close()
      await proxy?.close()
      await Promise.all([stores.source.close(), stores.target.close()])
    },
  }
}

/** One migration of a running guest. */
async function move(bed: Bed, n: number, durable: boolean): Promise<{ downtimeMs: number; report: Report }> {
  const dir = join(bed.dir, `move-${n}`)
  await mkdir(dir)
  const machine = (name: string, incoming: boolean) =>
    startMachine({
      spec: parseSpec(SPEC),
      dir: join(dir, name),
      paths: { imagesDir: join(bed.dir, 'images') },
      accelerator: 'tcg',
      incoming,
      qemu: bed.qemu,
    })
  const from = await machine('s', false)
  let to: RunningVm | undefined
  const at: { stopMs?: number; resumeMs?: number } = {}
  const note = (what: keyof typeof at) => () => {
    at[what] ??= performance.now()
  }
  from.qmp.on('STOP', note('stopMs'))
  await from.commands.cont()
  try {
    const plan: Plan = { ...PLAN, migrationId: n.toString(16).padStart(32, '0'), createdAt: Date.now() }
    const stores = durable ? bed.stores : { source: unsynced(bed.stores.source), target: unsynced(bed.stores.target) }
    const keys = { source: generateSiteKeys(), target: generateSiteKeys() }
    const journal = (side: 'source' | 'target') =>
      createJournal({ store: stores[side], keys: keys[side], now: Date.now, log: silentLog }).recorder(plan, side, Buffer.from(side))
    const shared = { plan, sourceCertificate: Buffer.from('a'), targetCertificate: Buffer.from('b'), log: silentLog, onProgress: () => {} }
    const target = startTarget({
      ...{ ...shared, keys: keys.target, peerBoxPublic: keys.source.boxPublic, record: journal('target') },
      async reserve() {
        to = await machine('t', true)
        to.qmp.on('RESUME', note('resumeMs'))
        return to
      },
      drop: async () => {},
      // The same write as in registry/records.ts.
      commit: epoch => stores.target.put('vms', plan.vm, { state: 'running', epoch }, { sync: true }),
    })
    bed.setTarget(target)
    const source = startSource({
      ...{ ...shared, keys: keys.source, peerBoxPublic: keys.target.boxPublic, record: journal('source') },
      ...{ offer: { type: 'OFFER', needs: {} }, qemu: { qmp: from.qmp, exited: from.exited, dir: from.runDir }, transport: 'quic' },
      async openStream(index, attempt) {
        const stream = await bed.connection.openStream()
        await stream.write(encodeFrame(FRAME.JOIN, toJson({ sessionId: plan.migrationId, index, attempt })))
        return stream
      },
    })
    const [report] = await within(Promise.all([source.done, target.done]), { ms: MOVE_MS, what: 'a migration' })
    return { report, downtimeMs: at.resumeMs! - at.stopMs! }
  } finally {
    await Promise.all([from.kill(), to?.kill()])
    await rm(dir, { recursive: true, force: true })
  }
}

const PLAN: Omit<Plan, 'migrationId' | 'createdAt'> = {
  ...{
    version: 1,
    vm: 'tiny',
    epoch: 1,
    source: 'a',
    target: 'b',
    method: 'live',
    downtimeMs: 300,
    streams: 2,
    attempt: 1,
    compression: 'zstd',
  },
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0

const PARTS = ['finalPagesMs', 'deviceStateMs', 'loadMs', 'commitMs', 'resumeMs'] as const

/** `migrations` of each kind, alternating, so that other load of the machine affects both. */
export async function benchCommit({ migrations }: { migrations: number }): Promise<Cost[]> {
  const costs: Cost[] = []
  for (const [link, rttMs] of [
    ['loopback', 0],
    [`${LINK_RTT_MS} ms link`, LINK_RTT_MS],
  ] as const) {
    const dir = await mkdtemp(join(tmpdir(), 'godwit-commit-'))
    const bed = await openBed(dir, rttMs)
    try {
      const moves: { durable: boolean; downtimeMs: number; report: Report }[] = []
      // The first one is a warm-up.
      await move(bed, 0, true)
      for (let n = 1; n <= 2 * migrations; n++) moves.push({ durable: n % 2 === 1, ...(await move(bed, n, n % 2 === 1)) })
      for (const durable of [true, false]) {
        const mine = moves.filter(one => one.durable === durable)
        const parts = Object.fromEntries(PARTS.map(part => [part, median(mine.map(({ report }) => report.downtimeParts[part] ?? 0))]))
        costs.push({ link, durable, migrations, downtimeMs: median(mine.map(one => one.downtimeMs)), parts })
      }
    } finally {
      await bed.close()
      await rm(dir, { recursive: true, force: true })
    }
  }
  showCommit(costs)
  return costs
}

function showCommit(costs: Cost[]): void {
  console.log(
    '\ncost of the durable commit: 32 MiB guest, TCG, medians; downtime from STOP at the source to RESUME at the target, measured by one external clock',
  )
  console.log('  link         commit      downtime   final pages  device state   load   commit  resume')
  for (const { link, durable, downtimeMs, parts } of costs) {
    const numbers = PARTS.map((part, i) => (parts[part] ?? 0).toFixed(1).padStart([13, 14, 7, 9, 8][i]!)).join('')
    console.log(`  ${link.padEnd(12)} ${(durable ? 'durable' : 'not synced').padEnd(10)} ${downtimeMs.toFixed(1).padStart(6)} ms${numbers}`)
  }
  for (let i = 0; i < costs.length; i += 2) {
    const [durable, plain] = [costs[i]!, costs[i + 1]!]
    const more = durable.downtimeMs - plain.downtimeMs
    console.log(
      `  ${durable.link}: the downtime of durable is ${(durable.downtimeMs / plain.downtimeMs).toFixed(2)} times as long (${more.toFixed(1)} ms more)`,
    )
  }
}
