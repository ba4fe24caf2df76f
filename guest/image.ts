// The location of the guest image, and the kernel command line for its program. Enters: options as numbers. Leaves:
// paths, a kernel command line.
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const folder = fileURLToPath(new URL('../.cache/guest/', import.meta.url))

type GuestImage = { kernel: string; initrd: string }

/**
 * Kernel and initrd as scripts/setup.js builds them, or undefined if they are missing (run `node scripts/setup.js`).
 */
export function guestImage(): GuestImage | undefined {
  const image = { kernel: `${folder}vmlinuz`, initrd: `${folder}initrd.img` }
  return existsSync(image.kernel) && existsSync(image.initrd) ? image : undefined
}

export type GuestOptions = {
  /** Memory that the program fills and checks; the guest needs about 100 MiB more. Default 64 MiB. */
  fillBytes?: number
  /** Rate of rewriting it; 0 for none. Default 4 MiB/s. */
  dirtyBytesPerSecond?: number
  /** Size of the part with three of four rewrites. Default an eighth of `fillBytes`. */
  hotBytes?: number
  /**
   * Bytes of a page that one rewrite changes, besides its header; every 16th changes the whole page. Default: the whole
   * page.
   */
  patchBytes?: number
  /** Rate of the page check; 0 for none. Default 100 MiB/s (about a fifth of an emulated CPU). */
  auditBytesPerSecond?: number
  /** Default 10. */
  beatMs?: number
  /** Time between WORK lines, which count the work of the guest. Default: no lines. */
  workMs?: number
  seed?: number
  /** Of disk /dev/vda: bytes that the program fills and rewrites durably, block by block. Default: no disk is used. */
  diskBytes?: number
  /** Rate of rewriting them. Default 128 KiB/s. */
  diskBytesPerSecond?: number
  /** Percent of pages that are zero, duplicates, compressible, random. Default 20, 10, 45, 25. */
  mix?: readonly [zero: number, duplicate: number, compressible: number, random: number]
}

/** The kernel command line for the guest: serial console, quiet boot, `godwit.*` for the program. */
export function guestAppend(options: GuestOptions = {}): string {
  const parameters = {
    fill: options.fillBytes,
    dirty: options.dirtyBytesPerSecond,
    hot: options.hotBytes,
    patch: options.patchBytes,
    work: options.workMs,
    audit: options.auditBytesPerSecond,
    beat: options.beatMs,
    seed: options.seed,
    mix: options.mix?.join(','),
    disk: options.diskBytes,
    diskrate: options.diskBytesPerSecond,
  }
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined)
  return ['console=ttyS0', 'quiet', 'panic=-1', ...given.map(([name, value]) => `godwit.${name}=${value}`)].join(' ')
}
