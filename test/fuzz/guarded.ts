// A function with a door behind a door, for the test of coverage: gives how many it went through.
export function guarded(bytes: Uint8Array): number {
  if (bytes[0] !== 0x47) return 0
  if (bytes[1] !== 0xa5) return 1
  if (bytes[2] !== 0x3c) return 2
  return 3
}
