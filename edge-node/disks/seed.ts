// The seed that cloud-init reads when a guest first boots (data source NoCloud): an ISO 9660 file system "cidata" of
// some texts, made by xorriso.
// Enters: texts, a path. Leaves: a raw disk of SEED_BYTES. Source: cloud-init's NoCloud page.
// Always holds: the same texts give the same bytes under one version of xorriso; xorriso has no configuration file, a
// clean environment and a bounded file; no text stays in another file; an existing file is not touched.
import { spawn } from 'node:child_process'
import { chmod, constants, copyFile, mkdir, open, rm, truncate, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { cagedTool, cleanEnvironment, NOT_FOUND } from '../../ops/cage.ts'
import { within } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'

export const SEED_BYTES = 1024 * 1024
const RUN_MS = 60_000
const TEXT_MAX = 4096
const ADDRESS_SPACE_BYTES = 1024 ** 3
const ISO = 'seed.iso'

/** `files`: names as cloud-init knows them, and their texts. CLOUD_INIT_FAILED, CONFIG_UNREADABLE. */
export async function makeSeed(path: string, files: Record<string, string>): Promise<void> {
  const dir = `${path}.parts`
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    await mkdir(dir, { mode: 0o700 })
    for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text, { mode: 0o600 })
    await runXorriso(dir, Object.keys(files))
    await copyFile(join(dir, ISO), path, constants.COPYFILE_EXCL)
    await truncate(path, SEED_BYTES)
    await chmod(path, 0o600)
    for (const each of [path, dirname(path)]) {
      await using file = await open(each)
      await file.sync()
    }
  } catch (error) {
    if (error instanceof GodwitError) throw error
    throw new GodwitError('CONFIG_UNREADABLE', `${path}: the seed of cloud-init cannot be made`, { cause: error })
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

async function runXorriso(dir: string, names: string[]): Promise<void> {
  const format = ['-volid', 'cidata', '-joliet', '-rational-rock', '--set_all_file_dates', '=1']
  const args = ['-no_rc', '-as', 'mkisofs', '-quiet', '-output', ISO, ...format, ...names]
  const command = cagedTool('xorriso', args, SEED_BYTES, ADDRESS_SPACE_BYTES)
  const env = { ...cleanEnvironment(), SOURCE_DATE_EPOCH: '0' }
  const child = spawn(command.file, command.args, { cwd: dir, env, stdio: ['ignore', 'ignore', 'pipe'] })
  let text = ''
  child.stderr.setEncoding('utf8').on('data', (more: string) => {
    text = (text + more).slice(-TEXT_MAX)
  })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  try {
    const code = await within(ended, { ms: RUN_MS, what: 'the end of xorriso' })
    if (code === NOT_FOUND) throw new GodwitError('CLOUD_INIT_FAILED', 'xorriso is not installed', { hint: 'install xorriso' })
    const line = text.trim().split('\n').at(-1)?.slice(0, 300)
    if (code !== 0) throw new GodwitError('CLOUD_INIT_FAILED', `xorriso ended with ${code ?? 'a signal'}: ${line}`)
  } finally {
    child.kill('SIGKILL')
  }
}
