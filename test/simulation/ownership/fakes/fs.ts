// node:fs for production in the simulation; only what it uses, synchronously.
import { hostOf } from '../host.ts'
import { processNow } from '../time.ts'

export const closeSync = (): void => {}
export const existsSync = (path: string): boolean =>
  [...hostOf(processNow()).disk.files.keys()].some(name => name === path || name.startsWith(`${path}/`))
export const readSync = (): number => 0
export const openSync = (): number => 0
export const readFileSync = (): string => ''
// Who has users of their own is not simulated: these are only named.
export const readdirSync = (): string[] => []
export const statSync = (): { uid: number; gid: number; mode: number } => ({ uid: 0, gid: 0, mode: 0 })
