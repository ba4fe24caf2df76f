// edge-node/vm/host.ts in the simulation: there is room enough.
const ROOM_BYTES = 64 * 1024 ** 3
export const diskFreeBytes = async (): Promise<number> => ROOM_BYTES
export const existingTaps = (): string[] => []
export const hostVcpus = (): number => 8
export const memoryAvailableBytes = (): number => ROOM_BYTES
