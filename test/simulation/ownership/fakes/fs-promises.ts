// node:fs/promises for production in the simulation: the files of the host whose process calls. Only what it uses.
// Files are durable once written: what they hold (a specification) decides nothing about who runs a VM.
import { hostOf } from '../host.ts'
import { pass } from '../stage.ts'
import { never, pause, processNow } from '../time.ts'

const files = () => hostOf(processNow()).disk.files
const missing = (path: string) => Object.assign(new Error(`ENOENT: ${path}`), { code: 'ENOENT' })

const step = async (): Promise<void> => {
  const process = processNow()
  if (!process.alive) await never()
  await pause(process, 0.05)
}

export async function mkdir(): Promise<undefined> {
  await step()
  return undefined
}
export const chmod = step
export const chown = step
export const lchown = async (): Promise<void> => {}

export async function readdir(path: string): Promise<string[]> {
  await step()
  const names = [...files().keys()].filter(name => name.startsWith(`${path}/`)).map(name => name.slice(path.length + 1).split('/')[0]!)
  return [...new Set(names)].sort()
}
export async function readFile(path: string): Promise<string> {
  await step()
  const text = files().get(path)
  if (text === undefined) throw missing(path)
  return text
}
export async function writeFile(path: string, text: string): Promise<void> {
  await pass(`before file ${path.split('/').at(-1)}`)
  await step()
  files().set(path, text)
}
export async function rename(from: string, to: string): Promise<void> {
  await step()
  const text = files().get(from)
  if (text === undefined) throw missing(from)
  files().delete(from)
  files().set(to, text)
}
export async function rm(path: string): Promise<void> {
  await pass(`before rm ${path.split('/').at(-1)}`)
  await step()
  for (const name of [...files().keys()]) if (name === path || name.startsWith(`${path}/`)) files().delete(name)
}
/** A QEMU's own folder is there as long as its VM's. */
export async function stat(path: string): Promise<{ size: number; uid: number; gid: number }> {
  const size = path.endsWith('/run') ? 0 : (await readFile(path)).length
  return { size, uid: 0, gid: 0 }
}
export async function open(path: string): Promise<{ sync(): Promise<void>; close(): Promise<void> }> {
  await step()
  return { sync: step, close: () => (path ? step() : step()) }
}
