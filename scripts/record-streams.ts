// Records the migration streams of test/vectors/qemu-stream with the QEMU of this machine: node bin/run.js
// scripts/record-streams.ts [NAME...]
// Enters: the list below (machine, devices, capabilities, the expected result of the parser). Leaves: NAME.zst for
// each, and index.json. The firmware is our own and option ROMs are off, so a recorded stream contains no third-party
// code.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { constants, zstdCompressSync } from 'node:zlib'
import { knownNames, readArguments, runScript } from '../ops/script.ts'
import { type RecordOptions, recordFrom } from '../test/edge-node/stream/record.ts'
import { COMMON_ARGV, qemuVersion, startTinyGuest } from '../test/edge-node/stream/tiny-guest.ts'

type Recording = RecordOptions & {
  name: string
  argv: string[]
  /** Names of the blocks that a migration would capture. */
  captures: string[]
  /** The start of the expected reason why the parser stops. */
  opaque?: string
  /** Extra commands before the migration. */
  before?: { execute: string; arguments: Record<string, unknown> }[]
}

const memfd = (mib: number) => ['-m', `${mib}`, '-object', `memory-backend-memfd,id=ram0,size=${mib}M,share=on`]
const always = ['events', 'return-path']
const usb = ['-device', 'qemu-xhci', '-device', 'usb-tablet', '-device', 'usb-kbd']
const virtio = ['-device', 'virtio-net-pci,romfile=', '-device', 'virtio-rng-pci', '-device', 'virtio-balloon-pci']

const RECORDINGS: Recording[] = [
  { name: 'i440fx-plain', argv: ['-machine', 'pc-i440fx-10.0', '-m', '4'], capabilities: [], captures: ['pc.ram'] },
  {
    name: 'i440fx-running',
    argv: ['-machine', 'pc-i440fx-10.0,memory-backend=ram0', ...memfd(2), ...virtio, '-device', 'piix3-usb-uhci'],
    capabilities: always,
    captures: ['ram0'],
    guest: 'run',
  },
  {
    name: 'i440fx-old',
    argv: ['-machine', 'pc-i440fx-2.6', '-m', '2'],
    capabilities: ['events'],
    captures: ['pc.ram'],
    guest: 'run',
  },
  {
    name: 'q35-postcopy-off',
    argv: ['-machine', 'pc-q35-10.0,memory-backend=ram0', ...memfd(8), ...virtio, ...usb, '-uuid', 'c0ffee00-0000-4000-8000-000000000001'],
    capabilities: [...always, 'postcopy-ram', 'validate-uuid'],
    captures: ['ram0'],
    guest: 'run',
  },
  {
    name: 'q35-blocks',
    argv: [
      ...['-machine', 'pc-q35-9.0,memory-backend=ram0', '-m', '4,slots=2,maxmem=1G', ...memfd(4).slice(2)],
      ...['-object', 'memory-backend-memfd,id=dimm0,size=2M', '-device', 'pc-dimm,memdev=dimm0', '-device', 'virtio-serial-pci'],
      ...['-object', 'memory-backend-ram,id=shm0,size=1M,share=on', '-device', 'ivshmem-plain,memdev=shm0,master=on'],
    ],
    capabilities: always,
    captures: ['ram0', 'dimm0'],
    guest: 'run',
  },
  {
    name: 'microvm-acpi',
    argv: ['-machine', 'microvm,acpi=on,memory-backend=ram0', ...memfd(4), '-device', 'virtio-rng-device', '-device', 'virtio-net-device'],
    capabilities: always,
    captures: ['ram0'],
    guest: 'run',
  },
  {
    name: 'microvm-ignore-shared',
    argv: ['-machine', 'microvm,memory-backend=ram0', ...memfd(1)],
    capabilities: ['events', 'x-ignore-shared', 'validate-uuid'],
    captures: ['ram0'],
  },
  { name: 'isapc', argv: ['-machine', 'isapc', '-m', '1'], capabilities: always, captures: ['pc.ram'], guest: 'run' },
  { name: 'none', argv: ['-machine', 'none'], capabilities: ['events'], captures: [] },
  {
    name: 'no-footers',
    argv: ['-machine', 'isapc', '-m', '1', '-global', 'migration.send-section-footer=off'],
    capabilities: [],
    captures: ['pc.ram'],
    guest: 'run',
  },
  {
    name: 'virtio-mem',
    argv: [
      ...['-machine', 'pc-q35-10.0,memory-backend=ram0', '-m', '2,slots=1,maxmem=1G', ...memfd(2).slice(2)],
      ...['-object', 'memory-backend-ram,id=vmem0,size=4M', '-device', 'virtio-mem-pci,memdev=vmem0,requested-size=2M'],
    ],
    capabilities: always,
    captures: ['ram0'],
    opaque: 'device state before the end of RAM',
  },
  {
    name: 'xbzrle',
    argv: ['-machine', 'isapc', '-m', '1'],
    capabilities: [...always, 'xbzrle'],
    captures: ['pc.ram'],
    opaque: 'RAM record with flags 0x60',
    guest: 'run',
  },
  {
    name: 'dirty-bitmap',
    argv: ['-machine', 'pc-i440fx-10.0', '-m', '1', '-blockdev', 'null-co,node-name=disk0,size=1048576,read-zeroes=on'],
    capabilities: [...always, 'dirty-bitmaps'],
    captures: ['pc.ram'],
    opaque: 'iterable section dirty-bitmap',
    before: [{ execute: 'block-dirty-bitmap-add', arguments: { node: 'disk0', name: 'bitmap0' } }],
  },
  {
    name: 'multifd',
    argv: ['-machine', 'isapc', '-m', '1'],
    capabilities: [...always, 'multifd'],
    captures: ['pc.ram'],
    opaque: 'RAM record with flags 0x200',
  },
  {
    name: 'postcopy',
    argv: ['-machine', 'isapc,memory-backend=ram0', ...memfd(2)],
    capabilities: [...always, 'postcopy-ram'],
    captures: ['ram0'],
    opaque: 'command 6 ',
    guest: 'run',
    postcopy: true,
  },
]

/** Sends commands and capabilities, lets the guest run, then records the stream. */
async function record(recording: Recording): Promise<Buffer> {
  using guest = await startTinyGuest(recording.argv)
  for (const command of recording.before ?? []) await guest.qmp.execute(command.execute, command.arguments)
  return await recordFrom(guest, recording)
}

async function main(names: string[]): Promise<void> {
  const folder = join(import.meta.dirname, '../test/vectors/qemu-stream')
  const index: Record<string, unknown> = names.length > 0 ? JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8')) : {}
  for (const recording of RECORDINGS) {
    if (names.length > 0 && !names.includes(recording.name)) continue
    const bytes = await record(recording)
    const packed = zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: 19 } })
    writeFileSync(join(folder, `${recording.name}.zst`), packed)
    const { name, guest, before, argv, ...rest } = recording
    const command = ['qemu-system-x86_64', ...COMMON_ARGV, '-S', ...argv]
    index[name] = {
      ...rest,
      qemu: qemuVersion(),
      argv: command,
      guest: guest ?? 'paused',
      ...(before ? { before } : {}),
      bytes: bytes.length,
    }
    console.log(`${name}: ${bytes.length} bytes, ${packed.length} packed`)
  }
  writeFileSync(join(folder, 'index.json'), `${JSON.stringify(index, undefined, 2)}\n`)
}

await runScript('Usage: node bin/run.js scripts/record-streams.ts [NAME ...]', async () => {
  const { positionals } = readArguments({ allowPositionals: true, options: {} })
  const known = RECORDINGS.map(({ name }) => name)
  await main(knownNames('recording', positionals, known))
})
