// QEMU's version numbers. Pure.

/** Older ones lack options that argv.ts uses or have never been tried. */
export const QEMU_MINIMUM = '7.2'

/** Negative, 0 or positive as a is older than, as old as, newer than b. Missing parts count as 0. */
export function compareVersions(a: string, b: string, parts = 3): number {
  const [left, right] = [a, b].map(text => text.split('.').map(Number))
  for (let index = 0; index < parts; index++) {
    const difference = (left?.[index] ?? 0) - (right?.[index] ?? 0)
    if (difference !== 0) return difference
  }
  return 0
}

/** 'major.minor.micro' in the answer to --version; undefined when it is no QEMU's. */
export function parseQemuVersion(text: string): string | undefined {
  const match = /^QEMU emulator version ([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,3}))?/m.exec(text)
  return match ? `${match[1]}.${match[2]}.${match[3] ?? '0'}` : undefined
}
