// QEMU's own migration over TCP: plain, with XBZRLE, with multifd and zstd; and the cold variant, stopped and sent
// through one zstd process. Enters: a bed. Leaves: a mover. The command line is that of Godwit's VMs. The settings are
// those of an operator: return path, no artificial bandwidth limit, the same downtime limit and the same number of
// channels as Godwit.
import { mkdir, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { connectQmp } from '../../edge-node/qmp/client.ts'
import { type QmpCommands, qmpCommands } from '../../edge-node/qmp/commands.ts'
import { buildArgv, RUNTIME_FILES } from '../../edge-node/vm/argv.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { guestImage } from '../../guest/image.ts'
import { eventually, sleep } from '../../ops/deadline.ts'
import { DOWNTIME_DEFAULT_MS } from '../../wire/admin.ts'
import type { BedEnd, Started } from './bed.ts'
import type { MakeMover, MoverOptions } from './run-one.ts'
import { MULTIFD_CHANNELS, type Variant, XBZRLE_CACHE_BYTES } from './variants.ts'

const QEMU = 'qemu-system-x86_64'
const PORT = 7001
const POLL_MS = 20
const START_MS = 20_000
const COLD_PIPE = fileURLToPath(new URL('./cold-pipe.ts', import.meta.url))
const COLD_SOCKET = 'cold.sock'

type Machine = { started: Started; commands: QmpCommands; dir: string }

async function startQemu({ bed, specText }: MoverOptions, at: BedEnd): Promise<Machine> {
  const dir = join(bed.dir, at)
  await mkdir(dir)
  const image = guestImage()!
  await symlink(image.kernel, join(dir, 'vmlinuz'))
  await symlink(image.initrd, join(dir, 'initrd.img'))
  const isTarget = at === 'b'
  const argv = buildArgv(parseSpec(specText), { imagesDir: dir }, { accelerator: 'tcg', incoming: isTarget })
  // Without an agent, the target resumes by itself.
  const words = [QEMU, ...argv.filter(word => !(isTarget && word === '-S'))]
  const started = bed.start(words, { at, log: `${at}.qemu.log`, cwd: dir })
  const client = await connectQmp({ path: join(dir, RUNTIME_FILES.qmp), timeoutMs: START_MS })
  return { started, commands: qmpCommands(client), dir }
}

async function prepare(commands: QmpCommands, variant: Variant & { kind: 'qemu' | 'cold' }): Promise<void> {
  const { multifdLevel, isXbzrle = false } = variant.kind === 'qemu' ? variant : {}
  const isMultifd = multifdLevel !== undefined
  // The pipe of the cold variant has no return path.
  await commands.setCapabilities({ 'return-path': variant.kind === 'qemu', events: true, multifd: isMultifd, xbzrle: isXbzrle })
  await commands.setParameters({
    maxBandwidthBytesPerSecond: 0,
    downtimeLimitMs: DOWNTIME_DEFAULT_MS,
    other: {
      ...(isMultifd ? { 'multifd-channels': MULTIFD_CHANNELS, 'multifd-compression': 'zstd', 'multifd-zstd-level': multifdLevel } : {}),
      ...(isXbzrle ? { 'xbzrle-cache-size': XBZRLE_CACHE_BYTES } : {}),
    },
  })
}

/** Waits until the source reports completed and the target runs. */
async function untilDone(source: QmpCommands, target: QmpCommands, signal: AbortSignal): Promise<string> {
  for (;;) {
    const { status, errorText, ram, downtimeMs } = await source.queryMigrate({ signal })
    if (status === 'failed' || status === 'cancelled') throw new Error(`QEMU: ${status}: ${errorText ?? 'no reason given'}`)
    if (status === 'completed' && (await target.queryStatus({ signal })).running)
      return `rounds ${ram?.dirtySyncCount ?? '?'}, QEMU's own downtime ${downtimeMs ?? '?'} ms`
    await sleep(POLL_MS, signal)
  }
}

type ColdPipes = { source: Started; target: Started }

/** One process at each end: QEMU's unix socket at each side, one TCP connection with zstd between them. */
async function startPipes({ bed }: MoverOptions, level: number): Promise<ColdPipes> {
  const words = (role: string, ...more: (string | number)[]) => [process.execPath, COLD_PIPE, role, ...more.map(String)]
  const target = bed.start(words('target', bed.addresses.b, PORT, join(bed.dir, 'b', COLD_SOCKET)), {
    at: 'b',
    log: 'pipe-b.log',
    ipc: true,
  })
  const source = bed.start(words('source', bed.addresses.b, PORT, join(bed.dir, 'a', COLD_SOCKET), level), {
    at: 'a',
    log: 'pipe-a.log',
    ipc: true,
  })
  await Promise.all([target, source].map(({ child }) => new Promise(resolve => child.once('message', resolve))))
  return { source, target }
}

export const makeQemu: MakeMover = async options => {
  const { bed, variant } = options
  if (variant.kind === 'godwit') throw new TypeError('not a variant of QEMU')
  const machines = { a: await startQemu(options, 'a'), b: await startQemu(options, 'b') }
  const { a, b } = machines
  for (const { commands } of [a, b]) await prepare(commands, variant)
  const pipes = variant.kind === 'cold' ? await startPipes(options, variant.level) : undefined
  await b.commands.migrateIncoming(pipes ? `unix:${join(b.dir, COLD_SOCKET)}` : `tcp:${bed.addresses.b}:${PORT}`)
  return {
    logs: { a: join(a.dir, RUNTIME_FILES.serialLog), b: join(b.dir, RUNTIME_FILES.serialLog) },
    boot: async () => {
      await a.commands.cont()
      await eventually(async () => (await a.commands.queryStatus()).running || undefined, { ms: START_MS, what: 'the guest' })
    },
    qemuPid: async () => a.started.pid,
    pids: async () => [a.started.pid, b.started.pid, ...(pipes ? [pipes.source.pid, pipes.target.pid] : [])],
    async move(signal) {
      if (pipes) await a.commands.stop()
      await a.commands.migrate(pipes ? `unix:${join(a.dir, COLD_SOCKET)}` : `tcp:${bed.addresses.b}:${PORT}`)
      if (pipes) return await untilRunning(b.commands, signal)
      return await untilDone(a.commands, b.commands, signal)
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all([a, b].map(({ started }) => started.child.kill('SIGKILL') && started.ended))
    },
  }
}

/** QEMU restores the source's run state, which was stopped: resume the target when it has loaded. */
async function untilRunning(target: QmpCommands, signal: AbortSignal): Promise<string> {
  for (;;) {
    const { status } = await target.queryMigrate({ signal })
    if (status === 'failed') throw new Error('QEMU: the target failed')
    if (status === 'completed') {
      await target.cont()
      return 'cold'
    }
    await sleep(POLL_MS, signal)
  }
}
