// A real guest under emulation for tests: boots the image straight in QEMU with its serial line on a pipe. For tests
// that need a VM but none of Godwit's own machinery. Always holds: QEMU is dead when the fixture is disposed.
import { type ChildProcessWithoutNullStreams, execFileSync, spawn } from 'node:child_process'
import { createWitness, type GuestRecord, type Witness } from '../../guest/beats.ts'
import { type GuestOptions, guestAppend, guestImage } from '../../guest/image.ts'

export { guestImage } from '../../guest/image.ts'

const QEMU = 'qemu-system-x86_64'

/** Why no guest can be booted here (for `skip`), or undefined when it can. */
export function guestMissing(): string | undefined {
  if (!guestImage()) return 'no guest image: run node scripts/setup.js'
  try {
    execFileSync(QEMU, ['--version'], { stdio: 'ignore', timeout: 10_000 })
    return undefined
  } catch {
    return `${QEMU} is not installed`
  }
}

type BootedGuest = AsyncDisposable & {
  witness: Witness
  qemu: ChildProcessWithoutNullStreams
  /** Writes one command line to the guest program. */
  send(command: string): void
  /** The first record that fits, of those seen from now on (or from the start with `past`). */
  seen<Kind extends GuestRecord['kind']>(
    kind: Kind,
    options?: { ms?: number; past?: boolean; where?: (record: Extract<GuestRecord, { kind: Kind }>) => boolean },
  ): Promise<Extract<GuestRecord, { kind: Kind }>>
  exited: Promise<number | null>
}

type Waiter = { fits: (record: GuestRecord) => boolean; resolve: (record: GuestRecord) => void }

/** Boots a guest under emulation. `memoryMiB` is the VM's; extra arguments go to QEMU. */
export function bootGuest(options: GuestOptions & { memoryMiB?: number; qemuArguments?: string[] } = {}): BootedGuest {
  const image = guestImage()
  if (!image) throw new Error('no guest image: run node scripts/setup.js')
  const machine = ['-accel', 'tcg', '-cpu', 'qemu64', '-m', String(options.memoryMiB ?? 192), '-nodefaults', '-display', 'none']
  const boot = ['-kernel', image.kernel, '-initrd', image.initrd, '-append', guestAppend(options), '-serial', 'stdio']
  const qemu = spawn(QEMU, [...machine, ...boot, ...(options.qemuArguments ?? [])])
  const witness = createWitness()
  const waiters = new Set<Waiter>()
  const past: GuestRecord[] = []
  let errors = ''
  qemu.stderr.setEncoding('utf8').on('data', text => {
    errors = (errors + text).slice(-4096)
  })
  qemu.stdout.setEncoding('latin1').on('data', (text: string) => {
    for (const record of witness.push('serial', text, performance.now())) {
      if (record.kind !== 'beat') past.push(record)
      for (const waiter of waiters) if (waiter.fits(record)) waiter.resolve(record)
    }
  })
  const exited = new Promise<number | null>(resolve => qemu.on('exit', resolve).on('error', () => resolve(null)))

  const seen = async (kind: string, { ms = 30_000, past: fromStart = false, where = (_: never) => true } = {}): Promise<GuestRecord> => {
    const fits = (record: GuestRecord) => record.kind === kind && where(record as never)
    const known = fromStart ? past.find(fits) : undefined
    if (known) return known
    let waiter: Waiter | undefined
    let timer: NodeJS.Timeout | undefined
    try {
      return await new Promise<GuestRecord>((resolve, reject) => {
        waiter = { fits, resolve }
        waiters.add(waiter)
        const tail = () => past.slice(-10).map(record => JSON.stringify(record))
        timer = setTimeout(() => reject(new Error(`the guest said no '${kind}' within ${ms} ms; ${tail().join('\n')}\n${errors}`)), ms)
        exited.then(code => reject(new Error(`QEMU ended with code ${code} while waiting for '${kind}': ${errors}`)))
      })
    } finally {
      clearTimeout(timer)
      if (waiter) waiters.delete(waiter)
    }
  }
  return {
    ...{ witness, qemu, exited, seen: seen as BootedGuest['seen'] },
    send: command => void qemu.stdin.write(`${command}\n`),
    async [Symbol.asyncDispose]() {
      qemu.kill('SIGKILL')
      await exited
    },
  }
}
