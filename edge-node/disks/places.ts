// Names of blocks of 4 KiB of disks: what a page of memory is compared with. Pure. Enters: a disk by number, a block of
// it. Leaves: a place, exact in a double. Always holds: places of different blocks differ.
import { CHUNK_BYTES } from './chunk-tree.ts'

export const BLOCK_BYTES = 4096
export const CHUNK_BLOCKS = CHUNK_BYTES / BLOCK_BYTES
const DISK_SPAN = 2 ** 32

export const diskPlaceOf = (disk: number, block: number): number => disk * DISK_SPAN + block
export const diskOf = (place: number): number => Math.floor(place / DISK_SPAN)
export const diskBlockOf = (place: number): number => place % DISK_SPAN
