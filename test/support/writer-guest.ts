// The smallest guest that writes to its disk: a boot sector that counts, and writes each number to a sector through the
// BIOS (int 13h, virtio-blk or virtio-scsi), as fast as it can. Enters: a lab, the disks of its specification. Leaves:
// its VM at a site; whether disk and memory are of one instant.
// Always holds: what the guest's own memory says it has written is what the disk must have; nothing is taken from what
// anybody reports.
import { execFileSync } from 'node:child_process'
import { closeSync, readSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bootSectorDisk } from '../../edge-node/vm/accelerators.ts'
import { eventually } from '../../ops/deadline.ts'
import type { Lab } from './lab.ts'
import { assert } from './suite.ts'

// next: inc dword [8000h]; the DAP at 7e00h: sector 2048 + counter % 4096, buffer 8000h; int 13h, ah=43h; jc fail;
//       [8200h] = [8000h]; jmp next
// fail: [8204h] = 0deadh; hlt
export const WRITER_CODE = Buffer.from(
  '31c08ed88ec08ed0bc007c8816007fc706007e1000c706027e0100c706047e0080c706067e000066c7060c7e0000000066ff06008066a1008066' +
    '25ff0f000066050008000066a3087eb800438a16007fbe007ecd13720a66a1008066a30082ebcf66c7060482adde0000f4ebf4',
  'hex',
)
const WRITTEN_AT = 0x8200
const FIRST_SECTOR = 2048
const SECTORS = 4096
const SECTOR_BYTES = 512

export type WriterGuest = {
  readonly name: string
  /** It writes at this site. */
  assertWrites(site: string): Promise<void>
  /**
   * Ends its QEMU at this site, and compares disk 0 with what its memory says it wrote. Gives the folder of its disks.
   */
  stopAndCompare(site: string): Promise<string>
}

/**
 * Writes to disk 1 of a writer at a site of this process, as its guest would: `mib` from `fromMib` on, a byte for each
 * MiB.
 */
export async function fillDisk(
  lab: Lab,
  siteName: string,
  { fromMib = 0, mib, byte = 1 }: { fromMib?: number; mib: number; byte?: number },
) {
  const { qmp } = lab.site(siteName).node.registry.machine('writer')
  for (let at = fromMib; at < fromMib + mib; at++)
    await qmp.execute('human-monitor-command', {
      'command-line': `qemu-io -d /machine/peripheral/blk1/virtio-backend "write -P ${byte + (at % 200)} ${at}M 1M"`,
    })
}

/**
 * Disk 0 stands on image 'writer', which every site of the lab imports, or those of `imageAt`; `more`: further disks;
 * `top`: further fields.
 */
export async function startWriter(
  lab: Lab,
  siteName: string,
  {
    format = 'qcow2',
    bus = 'virtio-blk',
    machine = 'pc-i440fx-9.0',
    more = '',
    top = '',
    imageAt = lab.sites().map(site => site.name),
  } = {},
): Promise<WriterGuest> {
  for (const site of imageAt.map(at => lab.site(at))) {
    const path = join(site.imagesDir, 'writer.raw')
    await writeFile(path, bootSectorDisk(WRITER_CODE))
    await site.api('POST', '/v1/images', { name: 'writer', from: path, format: 'raw' })
    const isReady = async () => ((await site.api<{ state: string }>('GET', '/v1/images/writer')).state === 'ready' ? true : undefined)
    await eventually(isReady, { ms: 30_000, what: `image at ${site.name}` })
    await rm(path)
  }
  const name = 'writer'
  const spec = `name: ${name}\nmemory: 32MiB\nmachine: ${machine}\naccelerator: tcg\nserial: false\ndisks:\n  - {mode: local, image: writer, size: 8MiB, format: ${format}, bus: ${bus}}\n${more}${top}`
  const site = lab.site(siteName)
  await site.api('POST', '/v1/vms', { spec })
  await site.api('POST', `/v1/vms/${name}/start`, {})
  const registry = (at: string) => lab.site(at).node.registry
  const words = async (at: string): Promise<{ written: number; failed: number }> => {
    const fd = await registry(at).machine(name).memoryFd()
    try {
      const bytes = Buffer.alloc(8)
      readSync(fd, bytes, 0, 8, WRITTEN_AT)
      return { written: bytes.readUInt32LE(0), failed: bytes.readUInt32LE(4) }
    } finally {
      closeSync(fd)
    }
  }
  const assertWrites = async (at: string) => {
    const before = await words(at)
    await eventually(async () => ((await words(at)).written > before.written + 10 ? true : undefined), {
      ms: 30_000,
      what: `${name} writes at ${at}`,
    })
    assert.is((await words(at)).failed, 0, 'a write has failed')
  }
  await assertWrites(siteName)
  return {
    name,
    assertWrites,
    async stopAndCompare(at) {
      const machine = registry(at).machine(name)
      const dir = join(machine.dir, 'disks')
      await machine.commands.stop()
      const { written } = await words(at)
      await registry(at).stop(name, { force: true })
      const raw = join(dir, 'compare.raw')
      execFileSync('qemu-img', ['convert', '-f', format, '-O', 'raw', join(dir, `0.${format}`), raw])
      const disk = await readFile(raw)
      await rm(raw)
      assert.ok(written > 0)
      const wrong: string[] = []
      // The last write may have come to the disk without the guest having heard of it.
      for (let number = Math.max(1, written - SECTORS + 2); number <= written; number++) {
        const at = (FIRST_SECTOR + (number % SECTORS)) * SECTOR_BYTES
        if (disk.readUInt32LE(at) !== number) wrong.push(`sector of ${number} holds ${disk.readUInt32LE(at)}`)
      }
      assert.equal(wrong.slice(0, 5), [], `${wrong.length} sectors are not what the guest wrote (it wrote ${written})`)
      assert.ok(disk.subarray(0, WRITER_CODE.length).equals(WRITER_CODE), 'the image is under it')
      return dir
    },
  }
}
