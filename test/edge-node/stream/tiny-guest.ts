// A guest of a few MiB whose firmware is ours: 64 KiB with a loop that writes one page after the other. For recording
// and replaying streams.
// Enters: argv after the common part. Leaves: a running QEMU with its QMP client, in a temporary folder of its own; it
// goes with `using`. The firmware is our own so that no recorded stream carries the code of another's firmware or
// option ROM.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connectQmp, type QmpClient } from '../../../edge-node/qmp/client.ts'

const FIRMWARE_BYTES = 65536

/**
 * 16-bit code: for each page from 64 KiB to 576 KiB, for ever: count in its first byte, write its segment and offset
 * behind.
 */
const LOOP = [
  'b80010', // mov ax, 1000h
  '8ed8', // segment: mov ds, ax
  '31db', // xor bx, bx
  'fe07', // page: inc byte [bx]
  '894702', // mov [bx+2], ax
  '895f04', // mov [bx+4], bx
  '81c30010', // add bx, 1000h
  '75f2', // jnz page
  '050010', // add ax, 1000h
  '3d0090', // cmp ax, 9000h
  '75e6', // jne segment
  'ebe1', // jmp the beginning
]

function firmware(): Uint8Array {
  const bytes = Uint8Array.from({ length: FIRMWARE_BYTES }, (_, at) => at >>> 12)
  bytes.set(Buffer.from(LOOP.join(''), 'hex'), 0)
  // The reset vector, 16 bytes below the end: jmp to offset 0 of the same 64 KiB.
  bytes.set([0xe9, 0x0d, 0x00], FIRMWARE_BYTES - 16)
  return bytes
}

/** 'MAJOR.MINOR.MICRO' of qemu-system-x86_64, or undefined where there is none. */
export function qemuVersion(): string | undefined {
  try {
    return /version (\d+\.\d+\.\d+)/.exec(execFileSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8', timeout: 10_000 }))?.[1]
  } catch {
    return undefined
  }
}

/** Machine, firmware and nothing else; relative paths, so the same argv serves anywhere. */
export const COMMON_ARGV = ['-accel', 'tcg', '-nodefaults', '-display', 'none', '-bios', 'firmware.bin']
const LOG_BYTES_MAX = 2000

export type TinyGuest = Disposable & { folder: string; qmp: QmpClient; pid: number; openMemory(): number; log(): string }

/** Starts QEMU, stopped (-S). `argv`: machine, memory, devices, -incoming. */
export async function startTinyGuest(argv: string[]): Promise<TinyGuest> {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-stream-'))
  writeFileSync(join(folder, 'firmware.bin'), firmware())
  const log = openSync(join(folder, 'log'), 'w')
  const monitor = ['-S', '-qmp', 'unix:qmp.sock,server=on,wait=off']
  const child = spawn('qemu-system-x86_64', [...COMMON_ARGV, ...monitor, ...argv], { cwd: folder, stdio: ['ignore', log, log] })
  closeSync(log)
  const readLog = () => {
    try {
      return readFileSync(join(folder, 'log'), 'utf8').slice(-LOG_BYTES_MAX)
    } catch {
      return '' // the folder is gone: we ended this QEMU ourselves
    }
  }
  child.on('error', () => {})
  const gone = new Promise<never>((_, reject) => child.once('close', code => reject(new Error(`QEMU ended (${code}): ${readLog()}`))))
  gone.catch(() => {})
  try {
    const qmp = await Promise.race([connectQmp({ path: join(folder, 'qmp.sock'), timeoutMs: 20_000 }), gone])
    const end = () => stop(child, qmp, folder)
    return { folder, qmp, pid: child.pid!, openMemory: () => openMemory(child.pid!), log: readLog, [Symbol.dispose]: end }
  } catch (error) {
    stop(child, undefined, folder)
    throw error
  }
}

function stop(child: ChildProcess, qmp: QmpClient | undefined, folder: string): void {
  qmp?.close()
  child.kill('SIGKILL')
  rmSync(folder, { recursive: true, force: true })
}

/** The guest's memory-backend-memfd, opened for reading and writing. */
function openMemory(pid: number): number {
  for (const name of readdirSync(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${name}`
    if (readlinkSync(path).startsWith('/memfd:memory-backend-memfd')) return openSync(path, 'r+')
  }
  throw new Error('this QEMU has no memory-backend-memfd')
}

export const setCapabilities = (qmp: QmpClient, names: string[]) =>
  qmp.execute('migrate-set-capabilities', { capabilities: names.map(capability => ({ capability, state: true })) })
