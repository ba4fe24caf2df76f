// Whether anything that must stay secret is anywhere that people look: logs, answers of the gateway and the nodes,
// metrics, titles of processes.
// Enters: a folder with key files, tokens, passwords and logs; further secrets; further texts. Leaves: nothing, or an
// error that names the secret and the place, and shows neither. Always holds: a folder without any secret is an error,
// so that the check cannot pass for having looked for nothing.
import { readdir, readFile, stat } from 'node:fs/promises'
import { join, relative } from 'node:path'

const SECRET_FILE = /(\.keys?|\.token|\.password|^token|^password)$/
const LOG_FILE = /\.(log|out|err)$/
const LENGTH_MIN = 8
/** Fields of key files that are no secrets. */
const PUBLIC_FIELDS = new Set(['version', 'kind', 'name', 'publicKey'])

export type Secret = { name: string; value: string | Uint8Array }
export type Text = { where: string; text: string }

/** Throws when a secret of `dir`, or one of `secrets`, stands in a log of `dir` or in one of `texts`. */
export async function checkSecrets(dir: string, { secrets = [], texts = [] }: { secrets?: Secret[]; texts?: Text[] } = {}): Promise<void> {
  const files = await filesOf(dir)
  const found = (await Promise.all(files.filter(({ name }) => SECRET_FILE.test(name)).map(file => secretsOf(dir, file.path)))).flat()
  const all = [...secrets, ...found].flatMap(({ name, value }) => formsOf(value).map(form => ({ name, form })))
  if (all.length === 0) throw new Error(`${dir}: there is no secret to look for`)
  const logs = await Promise.all(
    files
      .filter(({ name }) => LOG_FILE.test(name))
      .map(async ({ path }) => ({ where: relative(dir, path), text: await readFile(path, 'utf8') })),
  )
  const told = [...logs, ...texts].flatMap(({ where, text }) =>
    all.filter(({ form }) => text.includes(form)).map(({ name }) => `${name} in ${where}`),
  )
  if (told.length > 0) throw new Error(`secrets where people look: ${[...new Set(told)].join('; ')}`)
}

/** Command lines (and titles) of all processes that name this folder, and of `pids`. */
export async function commandLines(dir: string, pids: readonly number[] = []): Promise<Text[]> {
  const lines: Text[] = []
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    const text = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).replaceAll('\0', ' ')
    if (text.includes(dir) || pids.includes(Number(pid))) lines.push({ where: `the command line of process ${pid}`, text })
  }
  return lines
}

async function filesOf(dir: string): Promise<{ name: string; path: string }[]> {
  const entries = await readdir(dir, { withFileTypes: true, recursive: true }).catch(() => [])
  return entries.filter(entry => entry.isFile()).map(({ name, parentPath }) => ({ name, path: join(parentPath, name) }))
}

async function secretsOf(dir: string, path: string): Promise<Secret[]> {
  const { size } = await stat(path)
  const text = size < 65_536 ? (await readFile(path, 'utf8')).trim() : ''
  const name = relative(dir, path)
  if (text.startsWith('{'))
    return Object.entries(JSON.parse(text) as Record<string, unknown>).flatMap(([field, value]) =>
      typeof value === 'string' && !PUBLIC_FIELDS.has(field) ? [{ name: `${field} of ${name}`, value: bytesOf(value) ?? value }] : [],
    )
  if (text.includes('PRIVATE KEY'))
    return text.split('\n').flatMap(line => (line.startsWith('-----') || line.length < 32 ? [] : [{ name, value: line }]))
  return [{ name, value: text }]
}

const bytesOf = (text: string): Uint8Array | undefined => (/^[A-Za-z0-9+/]{43}=$/.test(text) ? Buffer.from(text, 'base64') : undefined)

/** Ways in which a value may have been written. */
function formsOf(value: string | Uint8Array): string[] {
  const bytes = Buffer.from(value)
  const forms = ['hex', 'base64', 'base64url'].map(encoding => bytes.toString(encoding as 'hex').replace(/=+$/, ''))
  const texts = typeof value === 'string' ? [value, encodeURIComponent(value)] : []
  return [...new Set([...texts, ...forms])].filter(form => form.length >= LENGTH_MIN)
}
