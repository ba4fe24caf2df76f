// edge-node/vm/process.ts in the simulation.
import { hostOf } from '../host.ts'
import { processNow } from '../time.ts'

export const bootId = (): string => hostOf(processNow()).bootId
export const allocatedMemoryBytes = async (): Promise<number> => 0
export const isAlive = (): boolean => false
export const killProcess = (): void => {}
export const identify = (): undefined => undefined
export const fileTail = async (): Promise<Buffer> => Buffer.alloc(0)
export const openMemoryFd = async (): Promise<number> => 0
export const processUser = (): undefined => undefined
