// Writes cpio archives in the "newc" form that the Linux kernel unpacks as its first root
// (Documentation/driver-api/early-userspace/buffer-format). Enters: entries. Leaves: bytes. Pure. Always holds: the
// same entries give the same bytes (no times, no owners, inodes by position).

export type CpioEntry =
  | { path: string; kind: 'file'; content: Uint8Array; executable?: boolean }
  | { path: string; kind: 'folder' }
  | { path: string; kind: 'link'; target: string }
  | { path: string; kind: 'device'; major: number; minor: number }

const TYPE_BITS = { file: 0o100000, folder: 0o040000, link: 0o120000, device: 0o020000 }
const ALIGNMENT = 4

const permissions = (entry: CpioEntry): number => {
  if (entry.kind === 'file') return entry.executable ? 0o755 : 0o644
  return entry.kind === 'device' ? 0o600 : entry.kind === 'link' ? 0o777 : 0o755
}

const padded = (bytes: Uint8Array): Uint8Array => {
  const out = new Uint8Array(Math.ceil(bytes.length / ALIGNMENT) * ALIGNMENT)
  out.set(bytes)
  return out
}

function member(name: string, inode: number, mode: number, content: Uint8Array, device = { major: 0, minor: 0 }): Uint8Array[] {
  const nameBytes = new TextEncoder().encode(`${name}\0`)
  // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, device.major, device.minor, nameBytes.length, 0]
  const header = `070701${fields.map(value => value.toString(16).padStart(8, '0')).join('')}`
  return [padded(Buffer.concat([new TextEncoder().encode(header), nameBytes])), padded(content)]
}

/** The whole archive. Folders must precede their content. */
export function writeCpio(entries: CpioEntry[]): Uint8Array {
  const none = new Uint8Array()
  const parts = entries.flatMap((entry, position) => {
    const content = entry.kind === 'file' ? entry.content : entry.kind === 'link' ? new TextEncoder().encode(entry.target) : none
    const device = entry.kind === 'device' ? { major: entry.major, minor: entry.minor } : undefined
    return member(entry.path, position + 1, TYPE_BITS[entry.kind] | permissions(entry), content, device)
  })
  return Buffer.concat([...parts, ...member('TRAILER!!!', 0, 0, none)])
}
