// qemu-nbd over the file of a disk that no running guest has active: the target writes through it what comes from the
// source, and the source of a stopped VM reads through it.
// Enters: a file, its named format, its image. Leaves: a client of it. Source: qemu-nbd(8).
// Always holds: formats and the image are named here, never taken from the file; only the folder's owner reaches the
// socket; the process ends with close(), or with this process; what was flushed is in the file.
import { type ChildProcess, spawn } from 'node:child_process'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { cagedTool, cleanEnvironment, NOT_FOUND } from '../../ops/cage.ts'
import { eventually, within } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import { connectUnix } from '../qmp/socket.ts'
import { CONTENT_CONTEXTS } from './extents.ts'
import { type NbdClient, openNbd } from './nbd/client.ts'

const EXPORT = 'disk'
const START_MS = 15_000
const END_MS = 10_000
/** Tables of a qcow2 beside its data: below 0.2 %. */
const GROWN = 1.01
const SPARE_BYTES = 256 * 1024 * 1024
const TEXT_MAX = 4096

export type ServedDisk = {
  /** A file of `dir`. */
  file: string
  format: 'raw' | 'qcow2'
  sizeBytes: number
  /** The raw file that a qcow2 stands on. */
  image?: string | undefined
}

export type DiskServer = {
  client: NbdClient
  /** Ends the server; what was not flushed may be lost. */
  close(): Promise<void>
}

/**
 * `dir`: the folder of the disks, which is the agent's alone. `isReadOnly`: nothing can
 * be written. PREFLIGHT_QEMU_MISSING, NBD_*, TIMEOUT.
 */
export async function serveDisk(
  dir: string,
  { file, format, sizeBytes, image }: ServedDisk,
  { isReadOnly = false } = {},
): Promise<DiskServer> {
  const socket = join(dir, `${file}.sock`)
  await rm(socket, { force: true })
  const node = {
    driver: format,
    file: { driver: 'file', filename: join(dir, file), locking: 'off' },
    ...(isReadOnly ? {} : { discard: 'unmap' }),
  }
  const base = image === undefined ? null : { driver: 'raw', 'read-only': true, file: { driver: 'file', filename: image } }
  const options = format === 'qcow2' ? { ...node, backing: base } : node
  const access = isReadOnly ? ['--read-only', '-A'] : ['--discard=unmap', '-A']
  const args = ['--persistent', `--socket=${socket}`, `--export-name=${EXPORT}`, ...access, `json:${JSON.stringify(options)}`]
  const command = cagedTool('qemu-nbd', args, Math.ceil(sizeBytes * GROWN) + SPARE_BYTES)
  const child = spawn(command.file, command.args, { cwd: dir, env: cleanEnvironment(), stdio: ['ignore', 'ignore', 'pipe'] })
  const ended = endOf(child)
  const stop = new AbortController()
  const died = ended.then(({ code, text }) => {
    if (code === NOT_FOUND) throw new GodwitError('PREFLIGHT_QEMU_MISSING', 'qemu-nbd is not installed', { hint: 'install qemu-utils' })
    throw new GodwitError('NBD_CLOSED', `qemu-nbd of ${file} has ended (${code ?? 'by a signal'})${text ? `: ${text}` : ''}`)
  })
  died.catch(() => {})
  const close = async () => {
    child.kill('SIGTERM')
    await within(ended, { ms: END_MS, what: 'the end of qemu-nbd' }).catch(() => child.kill('SIGKILL'))
    await rm(socket, { force: true })
  }
  try {
    const connect = () => connectUnix(socket, START_MS).catch(() => undefined)
    const connected = eventually(connect, { ms: START_MS, what: `qemu-nbd of ${file}`, everyMs: 10, signal: stop.signal })
    connected.catch(() => {})
    const client = await openNbd(await Promise.race([connected, died]), { export: EXPORT, contexts: CONTENT_CONTEXTS })
    if (client.sizeBytes !== sizeBytes) throw new GodwitError('NBD_REFUSED', `${file} has ${client.sizeBytes} bytes, not ${sizeBytes}`)
    return {
      client,
      async close() {
        client.close()
        await close()
      },
    }
  } catch (error) {
    stop.abort(error)
    await close()
    throw error
  }
}

function endOf(child: ChildProcess): Promise<{ code: number | null; text: string }> {
  let text = ''
  child.stderr?.setEncoding('utf8').on('data', piece => {
    text = (text + piece).slice(-TEXT_MAX)
  })
  return new Promise(resolve => {
    child.once('error', error => resolve({ code: NOT_FOUND, text: error.message }))
    child.once('close', code => resolve({ code, text: text.trim() }))
  })
}
