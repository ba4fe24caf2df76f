// Which accelerators run a guest on this host. Enters: a QEMU program. Leaves: accelerators, the better first.
// Always holds: an accelerator counts only when a guest has run under it; KVM counts only when its guest was not much
// slower than the same guest under emulation. There are hosts where /dev/kvm opens and a boot sector runs, 30 times
// slower than emulated, and where Linux hangs (KVM without hardware virtualisation below it). Each child has a
// deadline.
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { within } from '../../ops/deadline.ts'
import type { Accelerator } from './argv.ts'

const TCG_MS = 10_000
/** A busy host delays a good guest by scheduling alone; an unusable KVM took 2.8 to 5.1 s where TCG took 0.1 s. */
const KVM_MS_MIN = 600
const KVM_TO_TCG_MAX = 4
const KVM_TRIES = 3

/** Milliseconds until the guest ran, or undefined when it did not within `ms`. */
export type Probe = (binary: string, accelerator: Accelerator, ms: number, signal?: AbortSignal) => Promise<number | undefined>

/**
 * Measures TCG first, then KVM against it, up to KVM_TRIES times. Empty when nothing runs. An aborted signal ends the
 * children and is thrown.
 */
export async function measureAccelerators(binary: string, probe: Probe = probeAccelerator, signal?: AbortSignal): Promise<Accelerator[]> {
  const tcgMs = await probe(binary, 'tcg', TCG_MS, signal)
  const limitMs = Math.max(KVM_MS_MIN, KVM_TO_TCG_MAX * (tcgMs ?? TCG_MS))
  let kvmMs: number | undefined
  for (let tried = 0; tried < KVM_TRIES && kvmMs === undefined && !signal?.aborted; tried++)
    kvmMs = await probe(binary, 'kvm', limitMs, signal)
  signal?.throwIfAborted()
  return [...(kvmMs === undefined ? [] : (['kvm'] as const)), ...(tcgMs === undefined ? [] : (['tcg'] as const))]
}

/**
 * Writes 'G' to port 0xe9, then halts for ever. A disk of 1 MiB: SeaBIOS does not read one without a single cylinder.
 */
export function bootSectorDisk(code: Uint8Array = Uint8Array.of(0xfa, 0xb0, 0x47, 0xe6, 0xe9, 0xf4, 0xeb, 0xfd)): Uint8Array {
  const disk = new Uint8Array(1024 * 1024)
  disk.set(code)
  disk.set([0x55, 0xaa], 510)
  return disk
}

/** How long a guest takes to get through the BIOS to its boot sector, ms; undefined when it does not within `ms`. */
export async function probeAccelerator(
  binary: string,
  accelerator: Accelerator,
  ms: number,
  signal?: AbortSignal,
): Promise<number | undefined> {
  if (signal?.aborted) return undefined
  const folder = await mkdtemp(join(tmpdir(), 'godwit-probe-'))
  let child: ChildProcess | undefined
  try {
    await writeFile(join(folder, 'boot.img'), bootSectorDisk())
    child = spawn(binary, probeArguments(accelerator), { cwd: folder, stdio: ['ignore', 'pipe', 'ignore'] })
    const began = performance.now()
    const ran = await within(firstByte(child), { ms, what: `a guest under ${accelerator}`, signal }).catch(() => false)
    return ran ? performance.now() - began : undefined
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
