// QEMU's own best way to move a VM with its disk: blockdev-mirror to an NBD server of the target's QEMU, then a
// migration with multifd and zstd 3 over BBR, without TLS, as libvirt does it. Enters: a bed, a disk. Leaves: a mover.
// Always holds: the target's QEMU and its blank disk are there before the time is taken; with an image at the target,
// only what differs from the image is mirrored; the guest runs at the target only after its NBD server is closed.
import { mkdir, rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { connectQmp, type QmpClient } from '../../edge-node/qmp/client.ts'
import { type QmpCommands, qmpCommands } from '../../edge-node/qmp/commands.ts'
import { connectUnix } from '../../edge-node/qmp/socket.ts'
import { buildArgv, diskNode, localDiskPath, RUNTIME_FILES, VM_FILES } from '../../edge-node/vm/argv.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { guestImage } from '../../guest/image.ts'
import { eventually, sleep } from '../../ops/deadline.ts'
import { DOWNTIME_DEFAULT_MS } from '../../wire/admin.ts'
import type { BedEnd, Started } from '../wan/bed.ts'
import { MULTIFD_CHANNELS } from '../wan/variants.ts'
import { DISK_BYTES, IMAGE } from './cases.ts'
import { createDisk, fillDisk } from './files.ts'
import type { DiskMoverOptions, MakeDiskMover } from './run-one.ts'

const QEMU = 'qemu-system-x86_64'
const PORTS = { stream: 7001, disk: 7002 }
const POLL_MS = 20
const START_MS = 60_000
const NODE = diskNode(0)
const JOB = 'mirror'

type Machine = { started: Started; client: QmpClient; commands: QmpCommands }
type Job = { id: string; status: string; error?: string }

async function startQemu({ bed, specText, base, content }: DiskMoverOptions, at: BedEnd, isTarget: boolean): Promise<Machine> {
  const dir = join(bed.dir, at)
  const disk = localDiskPath(dir, 0, { format: 'qcow2' })
  await mkdir(join(dir, VM_FILES.disks), { recursive: true })
  const image = guestImage()!
  const links = { vmlinuz: image.kernel, 'initrd.img': image.initrd, [IMAGE]: content }
  for (const [name, path] of Object.entries(links)) {
    await rm(join(dir, name), { force: true })
    await symlink(path, join(dir, name))
  }
  await rm(disk, { force: true })
  await createDisk(disk, DISK_BYTES, base === 'image' ? content : undefined)
  if (!isTarget && base === 'nothing') await fillDisk(disk, content)
  const argv = buildArgv(parseSpec(specText), { imagesDir: dir }, { accelerator: 'tcg', incoming: isTarget, dir })
  const started = bed.start([QEMU, ...argv], { at, log: `${at}.qemu.log`, cwd: dir })
  const client = await connectQmp({ path: join(dir, RUNTIME_FILES.qmp), timeoutMs: START_MS })
  const commands = qmpCommands(client)
  await commands.setCapabilities({ 'return-path': true, events: true, multifd: true, 'pause-before-switchover': true })
  const other = { 'multifd-channels': MULTIFD_CHANNELS, 'multifd-compression': 'zstd', 'multifd-zstd-level': 3 }
  await commands.setParameters({ maxBandwidthBytesPerSecond: 0, downtimeLimitMs: DOWNTIME_DEFAULT_MS, other })
  return { started, client, commands }
}

async function openTarget({ client, commands }: Machine, host: string): Promise<void> {
  await client.execute('nbd-server-start', { addr: { type: 'inet', data: { host, port: String(PORTS.disk) } } })
  await client.execute('block-export-add', { id: JOB, type: 'nbd', 'node-name': NODE, writable: true, name: NODE })
  await commands.migrateIncoming(`tcp:${host}:${PORTS.stream}`)
}

async function untilJob({ client }: Machine, status: string | undefined, signal: AbortSignal): Promise<void> {
  for (;;) {
    const jobs = await client.execute<Job[]>('query-jobs', {}, { signal })
    const job = jobs.find(({ id }) => id === JOB)
    if (job?.error) throw new Error(`QEMU: ${JOB}: ${job.error}`)
    if (job?.status === status) return
    if (!job) throw new Error(`QEMU: ${JOB} has ended early`)
    await sleep(POLL_MS, signal)
  }
}

async function untilMigrated({ commands }: Machine, wanted: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    const { status, errorText } = await commands.queryMigrate({ signal })
    if (status === wanted) return
    if (status === 'failed' || status === 'cancelled') throw new Error(`QEMU: ${status}: ${errorText ?? 'no reason given'}`)
    await sleep(POLL_MS, signal)
  }
}

async function mirrorAndMigrate(source: Machine, target: Machine, host: string, isTop: boolean, signal: AbortSignal): Promise<void> {
  const server = { type: 'inet', host, port: String(PORTS.disk) }
  const node = { driver: 'nbd', 'node-name': 'nbd0', server, export: NODE, discard: 'unmap', 'detect-zeroes': 'unmap' }
  await source.client.execute('blockdev-add', node)
  const job = { 'job-id': JOB, device: NODE, target: 'nbd0', sync: isTop ? 'top' : 'full', 'auto-dismiss': true }
  await source.client.execute('blockdev-mirror', job)
  await untilJob(source, 'ready', signal)
  await source.commands.migrate(`tcp:${host}:${PORTS.stream}`)
  await untilMigrated(source, 'pre-switchover', signal)
  // Of a job that is ready, this leaves both sides with the same content.
  await source.client.execute('block-job-cancel', { device: JOB })
  await eventually(async () => ((await source.client.execute<Job[]>('query-jobs')).length === 0 ? true : undefined), {
    ms: START_MS,
    what: 'the end of the mirror',
    everyMs: 5,
  })
  await source.client.execute('migrate-continue', { state: 'pre-switchover' })
  await untilMigrated(target, 'completed', signal)
  await target.client.execute('nbd-server-stop')
  await target.commands.cont()
  await untilMigrated(source, 'completed', signal)
}

export const makeQemuWithDisk: MakeDiskMover = async options => {
  const { bed, base } = options
  const machines: Partial<Record<BedEnd, Machine>> = { a: await startQemu(options, 'a', false) }
  const end = async (at: BedEnd) => {
    machines[at]?.started.child.kill('SIGKILL')
    await machines[at]?.started.ended
    delete machines[at]
  }
  const logOf = (at: BedEnd) => join(bed.dir, at, RUNTIME_FILES.serialLog)
  return {
    logs: { a: logOf('a'), b: logOf('b') },
    boot: async () => await machines.a!.commands.cont(),
    qemuPid: async at => machines[at]!.started.pid,
    diskPath: at => localDiskPath(join(bed.dir, at), 0, { format: 'qcow2' }),
    async prepare(to) {
      await end(to)
      machines[to] = await startQemu(options, to, true)
      await openTarget(machines[to], bed.addresses[to])
    },
    async move(to, signal) {
      const source = machines[to === 'b' ? 'a' : 'b']!
      await mirrorAndMigrate(source, machines[to]!, bed.addresses[to], base === 'image', signal)
      return 'mirror, then multifd zstd 3'
    },
    async type(at, line) {
      const socket = await connectUnix(join(bed.dir, at, RUNTIME_FILES.serial), START_MS)
      await new Promise<void>(resolve => socket.end(`${line}\n`, () => resolve()))
    },
    [Symbol.asyncDispose]: async () => {
      for (const at of ['a', 'b'] as const) await end(at)
    },
  }
}
