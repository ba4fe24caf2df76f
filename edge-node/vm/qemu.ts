// Which QEMU this host has and what it can do. Enters: a program name. Leaves: its version, the accelerators that
// really run a guest, machine types, CPU models.
// Always holds: an accelerator counts only when a guest has run under it (accelerators.ts); each child has a deadline.
import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { GodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { z } from '../../wire/schema.ts'
import { connectQmp } from '../qmp/client.ts'
import { qmpCommands } from '../qmp/commands.ts'
import { measureAccelerators } from './accelerators.ts'
import type { Accelerator } from './argv.ts'
import { bootId } from './process.ts'
import { compareVersions, parseQemuVersion, QEMU_MINIMUM } from './version.ts'

export const QEMU_BINARY = 'qemu-system-x86_64'
/** After so many measurements without KVM in one boot of the host, KVM does not work here. */
export const KVM_MISSES_MAX = 3
export type QemuInfo = { binary: string /** 'major.minor.micro' */; version: string }
export type QemuAbilities = {
  accelerators: Accelerator[]
  machines: string[]
  /** By accelerator: the features of each model that this host cannot give under it. */
  cpus: Partial<Record<Accelerator, Record<string, string[]>>>
}

/**
 * PREFLIGHT_QEMU_MISSING when it is not installed, PREFLIGHT_QEMU_OLD when it is too old for any method, QEMU_COMMAND
 * when it is not a QEMU.
 */
export async function findQemu({ binary = QEMU_BINARY, signal }: { binary?: string; signal?: AbortSignal } = {}): Promise<QemuInfo> {
  const version = await readQemuVersion(binary, signal)
  if (compareVersions(version, QEMU_MINIMUM, 2) < 0)
    throw new GodwitError('PREFLIGHT_QEMU_OLD', `${binary} is QEMU ${version}; Godwit needs ${QEMU_MINIMUM} or newer`, {
      hint: `install QEMU ${QEMU_MINIMUM} or newer (9.0 for live migration without KVM)`,
    })
  return { binary, version }
}

/** 'major.minor.micro', whatever its age. PREFLIGHT_QEMU_MISSING, QEMU_COMMAND. */
export async function readQemuVersion(binary: string, signal?: AbortSignal): Promise<string> {
  let text: string
  try {
    text = (await promisify(execFile)(binary, ['--version'], { timeout: 10_000, maxBuffer: 64 * 1024, signal, killSignal: 'SIGKILL' }))
      .stdout
  } catch (cause) {
    signal?.throwIfAborted()
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new GodwitError('PREFLIGHT_QEMU_MISSING', `${binary}: QEMU is not installed`, { cause })
    throw new GodwitError('QEMU_COMMAND', `${binary} --version fails`, { cause })
  }
  const version = parseQemuVersion(text)
  if (version === undefined)
    throw new GodwitError('QEMU_COMMAND', `${binary} --version does not print a QEMU version: ${text.slice(0, 80).trim()}`)
  return version
}

/** Machine types and CPU models, asked of a QEMU without a machine. */
async function askQemu(
  binary: string,
  accelerator: Accelerator,
  log: Log,
  signal: AbortSignal | undefined,
): Promise<{ machines: string[]; cpus: Record<string, string[]> }> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-ask-'))
  const args = ['-nodefaults', '-no-user-config', '-display', 'none', '-S', '-machine', `none,accel=${accelerator}`]
  const child = spawn(binary, [...args, '-qmp', 'unix:qmp.sock,server=on,wait=off'], { cwd: folder, stdio: 'ignore' })
  try {
    const failed = new Promise<never>((_, reject) => child.once('error', reject))
    const client = await Promise.race([connectQmp({ path: join(folder, 'qmp.sock'), log, signal }), failed])
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
const cacheSchema = z.strictObject({ version: z.literal(2), key: z.string(), kvmMisses: z.number(), abilities: abilitiesSchema })
type Cache = z.infer<typeof cacheSchema>

/**
 * What this QEMU can do here. Measured once for a QEMU version and boot of the host, then read from `cacheFile`. A
 * measurement that decides against an existing /dev/kvm is repeated in the next calls, KVM_MISSES_MAX times in all: the
 * host may only have been busy.
 */
export async function qemuAbilities(
  qemu: QemuInfo,
  { cacheFile, log = silentLog, signal, measure = binary => measureAccelerators(binary, undefined, signal) }: AbilitiesOptions = {},
): Promise<QemuAbilities> {
  const key = `${qemu.binary} ${qemu.version} ${bootId()}`
  const cached = cacheFile === undefined ? undefined : await readCache(cacheFile, key)
  if (cached && isFinal(cached)) return cached.abilities as QemuAbilities
  const accelerators = await measure(qemu.binary)
  const abilities: QemuAbilities = { accelerators, machines: [], cpus: {} }
  for (const accelerator of accelerators) {
    const { machines, cpus } = await askQemu(qemu.binary, accelerator, log, signal)
    abilities.machines = machines
    abilities.cpus[accelerator] = cpus
  }
  log.info('QEMU measured', { version: qemu.version, accelerators })
  const kvmMisses = accelerators.includes('kvm') ? 0 : (cached?.kvmMisses ?? 0) + 1
  // A host where nothing ran may only have been busy: measure again next time.
  if (cacheFile !== undefined && accelerators.length > 0) await writeCache(cacheFile, { version: 2, key, kvmMisses, abilities })
  return abilities
}

type AbilitiesOptions = {
  cacheFile?: string
  log?: Log
  /** Ends the measurement, and the QEMUs that it started. */
  signal?: AbortSignal
  measure?: (binary: string) => Promise<Accelerator[]>
}

const isFinal = ({ abilities, kvmMisses }: Cache): boolean =>
  abilities.accelerators.includes('kvm') || kvmMisses >= KVM_MISSES_MAX || !existsSync('/dev/kvm')

async function readCache(path: string, key: string): Promise<Cache | undefined> {
  try {
    const cache = cacheSchema.parse(JSON.parse(await readFile(path, 'utf8')))
    return cache.key === key ? cache : undefined
  } catch {
    return undefined
  }
}

async function writeCache(path: string, cache: Cache): Promise<void> {
  await writeFile(`${path}.new`, JSON.stringify(cache), { mode: 0o600 })
  await rename(`${path}.new`, path)
}

/** The accelerator that a spec gets here; undefined: the one that it asks for does not work, or none does. */
export const workingAccelerator = (wanted: 'auto' | Accelerator, available: readonly Accelerator[]): Accelerator | undefined =>
  wanted === 'auto' ? (['kvm', 'tcg'] as const).find(name => available.includes(name)) : available.find(name => name === wanted)

/**
 * The accelerator that a spec gets here. PREFLIGHT_ACCELERATOR when it asks for one that does not work, or none does.
 */
export function chooseAccelerator(wanted: 'auto' | Accelerator, available: readonly Accelerator[]): Accelerator {
  const chosen = workingAccelerator(wanted, available)
  if (chosen) return chosen
  const why = wanted === 'auto' ? 'no accelerator runs a guest on this host' : `${wanted} does not run a guest on this host`
  throw new GodwitError('PREFLIGHT_ACCELERATOR', why, {
    hint: 'set accelerator: tcg (slow, and not a security boundary), or run godwit doctor',
  })
}
