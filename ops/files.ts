// Files that hold keys, tokens and certificates. Enters: paths. Leaves: their bytes, or CONFIG_UNREADABLE /
// CONFIG_INVALID naming the path. Always holds: a secret is written with mode 0600 from its first byte, completely or
// not at all; a secret that others can read is rejected, as ssh does; public files are armoured text with their kind,
// so that a certificate in place of a request is detected.
import { randomBytes } from 'node:crypto'
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { GodwitError } from '../wire/errors.ts'

const FILE_BYTES_MAX = 1024 * 1024

const ARMOR_KINDS = ['CERTIFICATE', 'CERTIFICATE REQUEST', 'ROOT PUBLIC KEY', 'REVOCATIONS', 'FENCING STATEMENT'] as const
type ArmorKind = (typeof ARMOR_KINDS)[number]

/** `-----BEGIN GODWIT CERTIFICATE-----`, base64 in lines of 64, `-----END ...`. */
export function armor(kind: ArmorKind, bytes: Uint8Array): string {
  const lines =
    Buffer.from(bytes)
      .toString('base64')
      .match(/.{1,64}/g) ?? []
  return `-----BEGIN GODWIT ${kind}-----\n${lines.join('\n')}\n-----END GODWIT ${kind}-----\n`
}

/** The kind and the bytes of armoured text; undefined if it is not armoured. Text around the armour is ignored. */
export function dearmor(text: string): { kind: ArmorKind; bytes: Uint8Array } | undefined {
  const match = /-----BEGIN GODWIT ([A-Z ]+)-----\s+([A-Za-z0-9+/=\s]+)-----END GODWIT \1-----/.exec(text)
  const kinds: readonly string[] = ARMOR_KINDS
  if (!match || !kinds.includes(match[1]!)) return undefined
  return { kind: match[1] as ArmorKind, bytes: new Uint8Array(Buffer.from(match[2]!.replace(/\s+/g, ''), 'base64')) }
}

/** The bytes of an armoured file of this kind. */
export async function readArmored(path: string, kind: ArmorKind): Promise<Uint8Array> {
  const found = dearmor(await readText(path))
  if (found?.kind === kind) return found.bytes
  throw new GodwitError(
    'CONFIG_INVALID',
    `${path}: expected a GODWIT ${kind}, found ${found ? `a GODWIT ${found.kind}` : 'something else'}`,
  )
}

export async function readText(path: string): Promise<string> {
  try {
    const { size } = await stat(path)
    if (size > FILE_BYTES_MAX) throw new GodwitError('CONFIG_INVALID', `${path}: larger than ${FILE_BYTES_MAX} bytes`)
    return await readFile(path, 'utf8')
  } catch (error) {
    throw unreadable(path, error)
  }
}

/** The text of a file that only its owner (or root) may read; CONFIG_INVALID if group or others can read it. */
export async function readSecret(path: string): Promise<string> {
  const { mode } = await stat(path).catch((error: unknown) => {
    throw unreadable(path, error)
  })
  if ((mode & 0o077) === 0) return await readText(path)
  const shown = (mode & 0o777).toString(8).padStart(4, '0')
  throw new GodwitError('CONFIG_INVALID', `${path}: other users can read this secret (mode ${shown})`, { hint: `chmod 600 ${path}` })
}

type WriteOptions = { mode?: number /** Without it an existing file is CONFIG_INVALID. */; overwrite?: boolean }

/**
 * Writes a file completely or not at all (temporary file, fsync, rename), creating its folder (0700). Default mode
 * 0600.
 */
export async function writeFileSafely(path: string, text: string, { mode = 0o600, overwrite = false }: WriteOptions = {}): Promise<void> {
  const folder = dirname(path)
  const temporary = join(folder, `.${basename(path)}.${randomBytes(6).toString('hex')}`)
  try {
    if (!overwrite && (await exists(path))) {
      throw new GodwitError('CONFIG_INVALID', `${path} already exists`, { hint: 'move the file first, or overwrite it with --force' })
    }
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const file = await open(temporary, 'wx', mode)
    try {
      await file.chmod(mode) // the umask may have removed bits
      await file.writeFile(text)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {})
    throw unreadable(path, error)
  }
}

export const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  )

function unreadable(path: string, error: unknown): GodwitError {
  if (error instanceof GodwitError) return error
  const reason = (error as NodeJS.ErrnoException).code ?? String(error)
  const words: Record<string, string> = {
    ENOENT: 'no such file',
    EACCES: 'permission denied',
    EISDIR: 'it is a folder',
    ENOSPC: 'no space left',
  }
  return new GodwitError('CONFIG_UNREADABLE', `${path}: ${words[reason] ?? reason}`, { cause: error })
}
