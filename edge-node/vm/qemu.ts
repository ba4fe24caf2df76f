// Which QEMU this host has and what it can do. Enters: a program name. Leaves: its version, the accelerators that really run a guest, machine types, CPU models.
// Always holds: an accelerator counts only when a guest has run under it (/dev/kvm opens on machines where every guest hangs); each child has a deadline.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { within } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { z } from '../../wire/schema.ts'
import { connectQmp } from '../qmp/client.ts'
import { qmpCommands } from '../qmp/commands.ts'
import type { Accelerator } from './argv.ts'
import { bootId } from './process.ts'
import { compareVersions, parseQemuVersion, QEMU_MINIMUM } from './version.ts'

export const QEMU_BINARY = 'qemu-system-x86_64'
export type QemuInfo = { binary: string /** 'major.minor.micro' */; version: string }
export type QemuAbilities = {
  accelerators: Accelerator[]
  machines: string[]
  /** By accelerator: the features of each model that this host cannot give under it. */
  cpus: Partial<Record<Accelerator, Record<string, string[]>>>
}

/** PREFLIGHT_QEMU_MISSING when it is not installed, PREFLIGHT_QEMU_OLD when it is too old for any method, QEMU_COMMAND when it is not a QEMU. */
export async function findQemu({ binary = QEMU_BINARY }: { binary?: string } = {}): Promise<QemuInfo> {
  const version = await readQemuVersion(binary)
  if (compareVersions(version, QEMU_MINIMUM, 2) < 0)
    throw new GodwitError('PREFLIGHT_QEMU_OLD', `${binary} is QEMU ${version}; Godwit needs ${QEMU_MINIMUM} or newer`, {
      hint: `install QEMU ${QEMU_MINIMUM} or newer (9.0 for live migration without KVM)`,
    })
  return { binary, version }
}

/** 'major.minor.micro', whatever its age. PREFLIGHT_QEMU_MISSING, QEMU_COMMAND. */
export async function readQemuVersion(binary: string): Promise<string> {
  let text: string
  try {
    text = (await promisify(execFile)(binary, ['--version'], { timeout: 10_000, maxBuffer: 64 * 1024 })).stdout
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new GodwitError('PREFLIGHT_QEMU_MISSING', `${binary}: QEMU is not installed`, { cause })
    throw new GodwitError('QEMU_COMMAND', `${binary} --version fails`, { cause })
  }
  const version = parseQemuVersion(text)
  if (version === undefined)
    throw new GodwitError('QEMU_COMMAND', `${binary} --version does not answer like QEMU: ${text.slice(0, 80).trim()}`)
  return version
}

/** Writes 'G' to port 0xe9, then halts for ever. A disk of 1 MiB: SeaBIOS does not read one without a single cylinder. */
export function bootSectorDisk(code: Uint8Array = Uint8Array.of(0xfa, 0xb0, 0x47, 0xe6, 0xe9, 0xf4, 0xeb, 0xfd)): Uint8Array {
  const disk = new Uint8Array(1024 * 1024)
  disk.set(code)
  disk.set([0x55, 0xaa], 510)
  return disk
}

/** Whether a guest under this accelerator gets through the BIOS and its boot sector within `ms`. */
export async function probeAccelerator(binary: string, accelerator: Accelerator, ms = 3_000): Promise<boolean> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-probe-'))
  let child: ChildProcess | undefined
  try {
    await writeFile(join(folder, 'boot.img'), bootSectorDisk())
    child = spawn(binary, probeArguments(accelerator), { cwd: folder, stdio: ['ignore', 'pipe', 'ignore'] })
    return await within(firstByte(child), { ms, what: `a guest under ${accelerator}` }).catch(() => false)
  } finally {
    child?.kill('SIGKILL')
    await rm(folder, { recursive: true, force: true })
  }
}

const probeArguments = (accelerator: Accelerator): string[] => [
  ...['-nodefaults', '-no-user-config', '-display', 'none', '-machine', `pc,accel=${accelerator}`, '-cpu', 'qemu64', '-m', '32'],
  ...['-drive', 'file=boot.img,format=raw,if=none,id=disk0,readonly=on', '-device', 'virtio-blk-pci,drive=disk0,bootindex=0'],
  ...['-chardev', 'stdio,id=out,signal=off', '-device', 'isa-debugcon,iobase=0xe9,chardev=out'],
]

const firstByte = (child: ChildProcess): Promise<boolean> =>
  new Promise(resolve => {
    child.stdout?.once('data', (chunk: Buffer) => resolve(chunk[0] === 0x47))
    child.once('exit', () => resolve(false))
    child.once('error', () => resolve(false))
  })

/** Machine types and CPU models, asked of a QEMU without a machine. */
async function askQemu(
  binary: string,
  accelerator: Accelerator,
  log: Log,
): Promise<{ machines: string[]; cpus: Record<string, string[]> }> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-ask-'))
  const args = ['-nodefaults', '-no-user-config', '-display', 'none', '-S', '-machine', `none,accel=${accelerator}`]
  const child = spawn(binary, [...args, '-qmp', 'unix:qmp.sock,server=on,wait=off'], { cwd: folder, stdio: 'ignore' })
  try {
    const failed = new Promise<never>((_, reject) => child.once('error', reject))
    const client = await Promise.race([connectQmp({ path: join(folder, 'qmp.sock'), log }), failed])
    const commands = qmpCommands(client)
    const machines = (await commands.queryMachines()).map(machine => machine.name)
    const models = await commands.queryCpuDefinitions()
    client.close()
    return { machines, cpus: Object.fromEntries(models.map(model => [model.name, model.unavailableFeatures ?? []])) }
  } finally {
    child.kill('SIGKILL')
    await rm(folder, { recursive: true, force: true })
  }
}

const abilitiesSchema = z.strictObject({
  accelerators: z.array(z.enum(['kvm', 'tcg'])),
  machines: z.array(z.string()),
  cpus: z.partialRecord(z.enum(['kvm', 'tcg']), z.record(z.string(), z.array(z.string()))),
})
const cacheSchema = z.strictObject({ version: z.literal(1), key: z.string(), abilities: abilitiesSchema })

/** What this QEMU can do here; measured once for a QEMU version and boot of the host, then read from `cacheFile`. */
export async function qemuAbilities(
  qemu: QemuInfo,
  { cacheFile, log = silentLog }: { cacheFile?: string; log?: Log } = {},
): Promise<QemuAbilities> {
  const key = `${qemu.binary} ${qemu.version} ${bootId()}`
  const cached = cacheFile === undefined ? undefined : await readCache(cacheFile, key)
  if (cached) return cached
  const candidates: Accelerator[] = ['kvm', 'tcg']
  const works = await Promise.all(candidates.map(accelerator => probeAccelerator(qemu.binary, accelerator)))
  const abilities: QemuAbilities = { accelerators: candidates.filter((_, index) => works[index]), machines: [], cpus: {} }
  for (const accelerator of abilities.accelerators) {
    const { machines, cpus } = await askQemu(qemu.binary, accelerator, log)
    abilities.machines = machines
    abilities.cpus[accelerator] = cpus
  }
  log.info('QEMU measured', { version: qemu.version, accelerators: abilities.accelerators })
  // A host where nothing ran may only have been overloaded: ask again next time.
  if (cacheFile !== undefined && abilities.accelerators.length > 0) await writeCache(cacheFile, { version: 1, key, abilities })
  return abilities
}

async function readCache(path: string, key: string): Promise<QemuAbilities | undefined> {
  try {
    const cache = cacheSchema.parse(JSON.parse(await readFile(path, 'utf8')))
    return cache.key === key ? (cache.abilities as QemuAbilities) : undefined
  } catch {
    return undefined
  }
}

async function writeCache(path: string, cache: unknown): Promise<void> {
  await writeFile(`${path}.new`, JSON.stringify(cache), { mode: 0o600 })
  await rename(`${path}.new`, path)
}

/** The accelerator that a spec gets here. PREFLIGHT_ACCELERATOR when it asks for one that does not work, or none does. */
export function chooseAccelerator(wanted: 'auto' | Accelerator, available: readonly Accelerator[]): Accelerator {
  const chosen =
    wanted === 'auto' ? (['kvm', 'tcg'] as const).find(name => available.includes(name)) : available.find(name => name === wanted)
  if (chosen) return chosen
  const why = wanted === 'auto' ? 'no accelerator runs a guest on this host' : `${wanted} does not run a guest on this host`
  throw new GodwitError('PREFLIGHT_ACCELERATOR', why, {
    hint: 'set accelerator: tcg (slow, and no security boundary), or see godwit doctor',
  })
}
