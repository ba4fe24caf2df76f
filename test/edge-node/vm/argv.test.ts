import { buildArgv, openedFiles } from '../../../edge-node/vm/argv.ts'
import { parseSpec, specFiles } from '../../../edge-node/vm/spec.ts'
import { assert, suite, thrown } from '../../support/suite.ts'

const test = suite('edge-node/vm/argv')

const spec = parseSpec(`name: web-1
vcpus: 2
memory: 64MiB
kernel: vmlinuz
append: a=b,c "d"
disks:
  - {file: base.img, mode: readonly, format: raw}
  - {file: data.qcow2, mode: shared, format: qcow2}
nics:
  - {type: user}
  - {type: none}
  - {type: tap, tap: tap0}
`)
function thrownBy(body: () => unknown): unknown {
  try {
    body()
  } catch (error) {
    return error
  }
  return undefined
}
const here = { imagesDir: '/a,b/images', sharedDir: '/mnt/shared' }
const there = { imagesDir: '/elsewhere', sharedDir: '/srv/shared' }
const valuesOf = (argv: string[], option: string) => argv.flatMap((item, index) => (item === option ? [argv[index + 1]!] : []))

test('source and target differ only in their folders and in -incoming', () => {
  const source = buildArgv(spec, here, { accelerator: 'tcg', incoming: false })
  const target = buildArgv(spec, there, { accelerator: 'tcg', incoming: true })
  const moved = source.map(item => item.replaceAll('/a,b/images', '/elsewhere').replaceAll('/mnt/shared', '/srv/shared'))
  assert.equal(target, [...moved, '-incoming', 'defer'])
})

test('guest memory is a shared memfd and the guest never starts by itself', () => {
  const argv = buildArgv(spec, here, { accelerator: 'kvm', incoming: false })
  assert.equal(valuesOf(argv, '-object'), ['memory-backend-memfd,id=ram0,size=67108864,share=on,x-use-canonical-path-for-ramblock-id=off'])
  assert.equal(valuesOf(argv, '-machine'), ['pc-i440fx-9.0,accel=kvm,memory-backend=ram0'])
  for (const flag of ['-S', '-nodefaults', '-no-user-config']) assert.ok(argv.includes(flag), flag)
  assert.match(valuesOf(argv, '-sandbox')[0]!, 'spawn=deny')
})

test('disks name their format, read-only ones are so for QEMU, shared ones go past the page cache', () => {
  const blocks = valuesOf(buildArgv(spec, here, { accelerator: 'tcg', incoming: false }), '-blockdev').map(text => JSON.parse(text))
  assert.equal(
    blocks.map(block => [block.driver, block['read-only'], block.cache.direct, block.filename]),
    [
      ['file', true, false, '/a,b/images/base.img'],
      ['raw', true, false, undefined],
      ['file', false, true, '/mnt/shared/data.qcow2'],
      ['qcow2', false, true, undefined],
    ],
  )
})

test('disks are at their bus, a CD in an IDE drive; a VM boots from its first disk, then from its CDs', () => {
  const disks =
    'disks:\n  - {mode: local, size: 1GiB, bus: virtio-scsi}\n  - {mode: local, size: 1GiB}\n' +
    '  - {file: a.iso, mode: readonly, format: raw, cdrom: true}\n  - {file: a.img, mode: readonly, format: raw, bus: virtio-scsi}\n'
  const devices = (more: string) =>
    valuesOf(buildArgv(parseSpec(`name: a\nmemory: 64MiB\n${more}${disks}`), here, { accelerator: 'tcg', incoming: false }), '-device')
  assert.equal(devices(''), [
    'pvpanic',
    'virtio-scsi-pci,id=scsi0',
    'scsi-hd,id=blk0,bus=scsi0.0,scsi-id=0,drive=disk0,serial=local-0,bootindex=0',
    'virtio-blk-pci,id=blk1,drive=disk1,serial=local-1',
    'ide-cd,id=blk2,drive=disk2,serial=readonly-2,bootindex=2',
    'scsi-hd,id=blk3,bus=scsi0.0,scsi-id=3,drive=disk3,serial=readonly-3',
  ])
  assert.ok(devices('kernel: k\n').every(device => !device.includes('bootindex')))
})

test('the seed of cloud-init is the disk after the last one of the specification', () => {
  const seeded = parseSpec('name: a\nmemory: 64MiB\nserial: false\ndisks: [{mode: local, size: 1GiB}]\ncloudInit: {userData: a}\n')
  assert.equal(
    openedFiles(seeded, here, '/vm').map(({ path, isWritten, disk }) => [path, isWritten, disk]),
    [
      ['/vm/disks/0.qcow2', true, 0],
      ['/vm/disks/1.raw', true, 1],
    ],
  )
  const argv = buildArgv(seeded, here, { accelerator: 'tcg', incoming: false, areOpened: true, dir: '/vm' })
  assert.is(valuesOf(argv, '-device').at(-1), 'virtio-blk-pci,id=blk1,drive=disk1,serial=local-1')
  assert.match(valuesOf(argv, '-blockdev').join(' '), '/dev/fdset/4')
})

test('UEFI is two flashes: code that the host has, compared by content, and variables that are a local disk without a device', () => {
  const text = 'name: a\nmemory: 64MiB\nserial: false\nfirmware: uefi\ndisks: [{mode: local, size: 1GiB}]\ncloudInit: {userData: a}\n'
  const uefi = parseSpec(text)
  assert.equal(
    openedFiles(uefi, here, '/vm').map(({ path, isWritten, disk }) => [path, isWritten, disk]),
    [
      ['/vm/disks/0.qcow2', true, 0],
      ['/vm/disks/1.raw', true, 1],
      ['/vm/disks/2.raw', true, 2],
      ['/usr/share/OVMF/OVMF_CODE_4M.fd', false, undefined],
    ],
  )
  assert.equal(specFiles(uefi), [{ file: 'OVMF_CODE_4M.fd', use: 'firmware' }])
  const argv = buildArgv(uefi, here, { accelerator: 'tcg', incoming: false, areOpened: true, dir: '/vm' })
  assert.match(valuesOf(argv, '-machine')[0]!, /,pflash0=firmware0,pflash1=disk2$/)
  assert.is(valuesOf(argv, '-device').length, 3)
  const code = valuesOf(argv, '-blockdev')
    .map(node => JSON.parse(node))
    .filter(node => ['code0', 'firmware0'].includes(node['node-name']))
  assert.equal(
    code.map(node => [node.filename, node['read-only']]),
    [
      ['/dev/fdset/6', true],
      [undefined, true],
    ],
  )
})

test('devices follow the NICs, each in its place, with sockets in the run folder', () => {
  const args = (more: string) =>
    buildArgv(parseSpec(`name: a\nmemory: 64MiB\nkernel: k\nserial: false\nnics: [{type: user}]\n${more}`), here, {
      accelerator: 'tcg',
      incoming: false,
    })
  const devices = (more: string) => valuesOf(args(more), '-device').map(device => device.split(',')[0])
  const all = args('display: true\nballoon: true\nrng: true\nagent: true\n')
  assert.equal(
    valuesOf(all, '-device').map(device => device.split(',')[0]),
    ['pvpanic', 'virtio-net-pci', 'virtio-serial-pci', 'virtserialport', 'virtio-rng-pci', 'virtio-balloon-pci', 'VGA'],
  )
  assert.equal(valuesOf(all, '-vnc'), ['unix:vnc.sock'])
  assert.ok(valuesOf(all, '-chardev').includes('socket,id=agent0,path=agent.sock,server=on,wait=off'))
  assert.equal(devices('agent: false\nrng: true\n'), ['pvpanic', 'virtio-net-pci', 'virtio-rng-pci'])
})

test('the kernel command line is one argument, whatever is in it', () => {
  assert.equal(valuesOf(buildArgv(spec, here, { accelerator: 'tcg', incoming: false }), '-append'), ['a=b,c "d"'])
})

test('log, kernel and disks that nobody writes to are descriptors, whose order both sides of the spawn agree on', () => {
  const argv = buildArgv(spec, here, { accelerator: 'tcg', incoming: false, areOpened: true })
  assert.equal(
    openedFiles(spec, here, '/vm').map(({ path, use }) => `${use} ${path}`),
    ['log /vm/serial.log', 'kernel /a,b/images/vmlinuz', 'disk /a,b/images/base.img', 'disk /mnt/shared/data.qcow2'],
  )
  assert.equal(valuesOf(argv, '-kernel'), ['/proc/self/fd/4'])
  assert.equal(valuesOf(argv, '-add-fd'), ['fd=3,set=3,opaque=serial.log', 'fd=5,set=5,opaque=base.img', 'fd=6,set=6,opaque=data.qcow2'])
  assert.match(argv.join(' '), 'logfile=/dev/fdset/3,logappend=on')
})

/** Every option that a VM can give to QEMU; a new one is a decision of its own. */
const OPTIONS = [
  ...['-name', '-nodefaults', '-no-user-config', '-display', '-object', '-machine', '-m', '-cpu', '-smp', '-uuid', '-sandbox', '-action'],
  ...[
    '-add-fd',
    '-chardev',
    '-mon',
    '-serial',
    '-kernel',
    '-initrd',
    '-append',
    '-blockdev',
    '-device',
    '-netdev',
    '-vnc',
    '-pidfile',
    '-S',
    '-incoming',
  ],
]
const DEVICES =
  /^(virtio-blk-pci,|virtio-scsi-pci,id=scsi0$|scsi-hd,|ide-cd,|virtio-serial-pci,|virtserialport,|virtio-rng-pci,|virtio-balloon-pci,|VGA,|virtio-net-pci,|pvpanic$)/

test('a VM gets the options and devices of a short list, the sandbox whole, and no path but ours', () => {
  const everything = parseSpec(
    'name: web-1\nmemory: 64MiB\nkernel: vmlinuz\ninitrd: initrd.img\nappend: init=/x -device usb-host,id=1\nservices: [{name: http, port: 80}]\n' +
      'disks:\n  - {file: a.img, mode: readonly, format: raw}\n  - {file: b.img, mode: ephemeral, format: qcow2}\n  - {file: c.img, mode: writable, format: raw}\n  - {file: d.img, mode: shared, format: raw}\n' +
      '  - {file: f.img, mode: shared, format: raw, bus: virtio-scsi}\n  - {file: e.iso, mode: readonly, format: raw, cdrom: true}\n' +
      'nics:\n  - {type: user}\n  - {type: tap, tap: tap0}\nagent: true\nrng: true\nballoon: true\ndisplay: true\n',
  )
  for (const incoming of [false, true]) {
    const argv = buildArgv(everything, here, { accelerator: 'kvm', incoming, areOpened: true })
    for (let at = 0; at < argv.length; at++) {
      const option = argv[at]!
      assert.ok(OPTIONS.includes(option), option)
      if (!['-nodefaults', '-no-user-config', '-S'].includes(option)) at++
    }
    assert.equal(valuesOf(argv, '-sandbox'), ['on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'])
    for (const device of valuesOf(argv, '-device')) assert.match(device, DEVICES)
    const paths = argv.filter((_, at) => argv[at - 1] !== '-append').flatMap(item => item.match(/\/[^"]*/g) ?? [])
    for (const path of paths) assert.match(path, /^\/(dev\/fdset\/[0-9]+(,logappend=on)?|proc\/self\/fd\/[0-9]+)$/)
  }
})

test('a specification from another site brings no path, no option and no name that is more than a name', () => {
  const hostile = [
    ...['../etc/shadow', '/etc/shadow', 'a/b', '.hidden', 'x,readonly=off', 'x y', '-device', 'a\u0000b', '..', '', 'a'.repeat(129)].map(
      file => `disks: [{file: ${JSON.stringify(file)}, mode: readonly, format: raw}]`,
    ),
    ...['../vmlinuz', '/proc/self/mem', '-S'].map(kernel => `kernel: ${JSON.stringify(kernel)}`),
    ...['pc', 'microvm', 'pc-i440fx-9.0,accel=kvm', 'none'].map(machine => `kernel: k\nmachine: ${JSON.stringify(machine)}`),
    ...['host', 'max', 'qemu64,+vmx', '-cpu'].map(cpu => `kernel: k\ncpu: ${JSON.stringify(cpu)}`),
    ...['tap0,script=/bin/sh', 'a/b', '../x', ''].map(tap => `kernel: k\nnics: [{type: tap, tap: ${JSON.stringify(tap)}}]`),
    ...['52:54:00:12:34:56,x=1', 'ff:ff:ff:ff:ff:ff'].map(mac => `kernel: k\nnics: [{type: user, mac: ${JSON.stringify(mac)}}]`),
    'kernel: k\nargs: [-monitor, stdio]',
    'kernel: k\nappend: "a\\nb"',
    'disks: [{file: a, mode: readonly, format: vmdk}]',
    'disks: [{file: a, mode: readonly, format: raw, backing: /etc/shadow}]',
    'kernel: k\nnics: [{type: bridge, br: br0}]',
  ]
  for (const lines of hostile)
    assert.is((thrownBy(() => parseSpec(`name: x\nmemory: 64MiB\n${lines}\n`)) as { code?: string }).code, 'VM_SPEC_INVALID', lines)
  for (const name of ['../x', 'a/b', 'x,y', '', 'X', 'a'.repeat(65), '-x/..'])
    assert.is(
      (thrownBy(() => parseSpec(`name: ${JSON.stringify(name)}\nmemory: 64MiB\nkernel: k\n`)) as { code?: string }).code,
      'VM_SPEC_INVALID',
      name,
    )
})

test('taps run no scripts and NICs load no ROM', () => {
  const argv = buildArgv(spec, here, { accelerator: 'tcg', incoming: false })
  assert.equal(valuesOf(argv, '-netdev'), ['user,id=net0', 'tap,id=net2,ifname=tap0,script=no,downscript=no,vhost=off'])
  for (const device of valuesOf(argv, '-device').filter(item => item.startsWith('virtio-net'))) assert.match(device, /,romfile=$/)
})

test('only without a kernel is the first disk booted', () => {
  const disk = parseSpec('name: a\nmemory: 64MiB\ndisks: [{file: d, mode: readonly, format: raw}, {file: e, mode: readonly, format: raw}]')
  const boots = (argv: string[]) => valuesOf(argv, '-device').flatMap(item => (item === 'pvpanic' ? [] : [item.includes('bootindex=0')]))
  assert.equal(boots(buildArgv(disk, here, { accelerator: 'tcg', incoming: false })), [true, false])
  assert.equal(boots(buildArgv(spec, here, { accelerator: 'tcg', incoming: false })), [false, false, false, false])
})

test('a shared disk without a shared folder is our bug by then', async () => {
  assert.instance(await thrown(() => buildArgv(spec, { imagesDir: '/x' }, { accelerator: 'tcg', incoming: false })), TypeError)
})

test.run()
