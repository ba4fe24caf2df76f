// qemu-img, run in bounds: it reads images of strangers. Enters: what to do with which files. Leaves: what qemu-img
// found or made, or a coded error.
// Always holds: formats are named, never probed; it runs in one folder, on names in it, as a user of its own where the
// agent is root, with a clean environment and bounded memory and files; a run that makes no progress, or is cancelled,
// is killed and waited for.
import { spawn } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { cagedTool, cleanEnvironment, NOT_FOUND } from '../../ops/cage.ts'
import { GodwitError } from '../../wire/errors.ts'
import { checkJson, z } from '../../wire/schema.ts'

/** What may be imported. QEMU reads more formats; these are the ones that images are offered in. */
export const IMPORT_FORMATS = ['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc'] as const
export type ImportFormat = (typeof IMPORT_FORMATS)[number]

export type ToolUser = { uid: number; gid: number }
type ToolOptions = {
  /** The working folder; it belongs to `runAs`. */
  dir: string
  runAs?: ToolUser | undefined
  signal?: AbortSignal | undefined
}

/** Conversions of images of some TiB need some 300 MiB; a hostile header could ask for more. */
const ADDRESS_SPACE_BYTES = 4 * 1024 ** 3
const OUTPUT_BYTES_MAX = 64 * 1024
/** A conversion whose output does not grow, and that does not end, for so long is given up. */
const STILL_MS = 10 * 60_000
const LOOK_MS = 1_000

type Run = ToolOptions & { fileBytesMax: number; watch?: { file: string; onBytes(bytes: number): void } }

/**
 * Runs qemu-img with these arguments and gives its output. PREFLIGHT_QEMU_MISSING, IMAGE_INVALID, DISK_FULL,
 * DISK_IO; the signal's reason.
 */
async function qemuImg(args: string[], { dir, runAs, signal, fileBytesMax, watch }: Run): Promise<string> {
  signal?.throwIfAborted()
  const command = cagedTool('qemu-img', args, fileBytesMax, ADDRESS_SPACE_BYTES)
  const child = spawn(command.file, command.args, {
    ...{ cwd: dir, env: cleanEnvironment(), stdio: ['ignore', 'pipe', 'pipe'] },
    ...(runAs ?? {}),
  })
  const texts = { out: '', error: '' }
  const collect = (name: 'out' | 'error') => (text: string) => {
    texts[name] = (texts[name] + text).slice(0, OUTPUT_BYTES_MAX)
  }
  child.stdout?.setEncoding('utf8').on('data', collect('out'))
  child.stderr?.setEncoding('utf8').on('data', collect('error'))
  let gaveUp: GodwitError | undefined
  const kill = () => void child.kill('SIGKILL')
  const stopWatching =
    watch &&
    watchGrowth(join(dir, watch.file), watch.onBytes, () => {
      gaveUp = new GodwitError('IMAGE_INVALID', `qemu-img ${args[0]} makes no progress for ${STILL_MS / 60_000} minutes`)
      kill()
    })
  signal?.addEventListener('abort', kill, { once: true })
  try {
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', resolve)
    })
    signal?.throwIfAborted()
    if (gaveUp) throw gaveUp
    if (code === NOT_FOUND) throw new GodwitError('PREFLIGHT_QEMU_MISSING', 'qemu-img is not installed', { hint: 'install qemu-utils' })
    if (code !== 0) throw toolError(args[0]!, texts.error, code)
    return texts.out
  } finally {
    signal?.removeEventListener('abort', kill)
    stopWatching?.()
  }
}

function toolError(verb: string, text: string, code: number | null): GodwitError {
  const line = text.trim().split('\n').at(-1)?.slice(0, 500) ?? ''
  if (/No space left|File too large/i.test(text)) return new GodwitError('DISK_FULL', `qemu-img ${verb}: ${line}`)
  if (/Input\/output error/i.test(text)) return new GodwitError('DISK_IO', `qemu-img ${verb}: ${line}`)
  return new GodwitError('IMAGE_INVALID', `qemu-img ${verb} ended with ${code ?? 'a signal'}${line ? `: ${line}` : ''}`)
}

/** Looks at the allocated size of a file every second. Gives what ends the watching. */
function watchGrowth(path: string, onBytes: (bytes: number) => void, onStill: () => void): () => void {
  let last = { bytes: -1, atMs: performance.now() }
  const look = async () => {
    const { blocks = 0 } = await stat(path).catch(() => ({ blocks: 0 }))
    const bytes = blocks * 512
    if (bytes !== last.bytes) last = { bytes, atMs: performance.now() }
    else if (performance.now() - last.atMs > STILL_MS) onStill()
    onBytes(bytes)
  }
  const timer = setInterval(() => void look(), LOOK_MS)
  return () => clearInterval(timer)
}

const Info = z.object({
  'virtual-size': z.int().min(0),
  format: z.string(),
  encrypted: z.boolean().optional(),
  'backing-filename': z.string().optional(),
  'format-specific': z
    .object({ data: z.object({ 'data-file': z.string().optional() }).loose().optional() })
    .loose()
    .optional(),
})

type ImageInfo = { sizeBytes: number }

/** What an image of a named format holds. IMAGE_INVALID when it is none, is encrypted, or refers to other files. */
export async function imageInfo(file: string, format: ImportFormat, options: ToolOptions): Promise<ImageInfo> {
  const text = await qemuImg(['info', '--output=json', '-f', format, file], { ...options, fileBytesMax: 0 })
  const info = checkJson(Info, Buffer.from(text), { what: 'answer of qemu-img', code: 'IMAGE_INVALID' })
  const refuse = (why: string, hint: string) => new GodwitError('IMAGE_INVALID', `the image ${why}`, { hint })
  const whole = 'make it one file with qemu-img convert, where its other file is'
  if (info['backing-filename'] !== undefined) throw refuse('has a backing file', whole)
  if (info['format-specific']?.data?.['data-file'] !== undefined) throw refuse('keeps its data in another file', whole)
  if (info.encrypted) throw refuse('is encrypted', 'decrypt it with qemu-img convert')
  return { sizeBytes: info['virtual-size'] }
}

/** Writes the content of an image to a raw file with holes. `onBytes`: bytes of the output that are allocated. */
export async function convertToRaw(
  { from, format, to, sizeBytes }: { from: string; format: ImportFormat; to: string; sizeBytes: number },
  { onBytes = () => {}, ...options }: ToolOptions & { onBytes?: ((bytes: number) => void) | undefined },
): Promise<void> {
  const args = ['convert', '-f', format, '-O', 'raw', '-S', '64k', '-t', 'writeback', from, to]
  await qemuImg(args, { ...options, fileBytesMax: sizeBytes + 1024 * 1024, watch: { file: to, onBytes } })
}

/** An empty qcow2, or one over a raw image that is named when it is opened, never by the header alone. */
export async function createQcow2(
  { file, sizeBytes, backing }: { file: string; sizeBytes: number; backing?: string | undefined },
  options: ToolOptions,
): Promise<void> {
  // -u: the backing file is not opened; its name in the header is never followed, as QEMU is given the chain.
  const chain = backing === undefined ? [] : ['-b', backing, '-F', 'raw', '-u']
  const args = ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=64k,lazy_refcounts=off,compat=1.1', ...chain, file, String(sizeBytes)]
  await qemuImg(args, { ...options, fileBytesMax: 1024 * 1024 * 1024 })
}
