import { buildArgv } from '../../../edge-node/vm/argv.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
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
  assert.equal(valuesOf(argv, '-object'), ['memory-backend-memfd,id=ram0,size=67108864,share=on'])
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

test('the kernel command line is one argument, whatever is in it', () => {
  assert.equal(valuesOf(buildArgv(spec, here, { accelerator: 'tcg', incoming: false }), '-append'), ['a=b,c "d"'])
})

test('taps run no scripts and NICs load no ROM', () => {
  const argv = buildArgv(spec, here, { accelerator: 'tcg', incoming: false })
  assert.equal(valuesOf(argv, '-netdev'), ['user,id=net0', 'tap,id=net2,ifname=tap0,script=no,downscript=no,vhost=off'])
  for (const device of valuesOf(argv, '-device').filter(item => item.startsWith('virtio-net'))) assert.match(device, /,romfile=$/)
})

test('only without a kernel is the first disk booted', () => {
  const disk = parseSpec('name: a\nmemory: 64MiB\ndisks: [{file: d, mode: readonly, format: raw}, {file: e, mode: readonly, format: raw}]')
  const boots = (argv: string[]) => valuesOf(argv, '-device').map(item => item.includes('bootindex=0'))
  assert.equal(boots(buildArgv(disk, here, { accelerator: 'tcg', incoming: false })), [true, false])
  assert.equal(boots(buildArgv(spec, here, { accelerator: 'tcg', incoming: false })), [false, false, false, false])
})

test('a shared disk without a shared folder is our bug by then', async () => {
  assert.instance(await thrown(() => buildArgv(spec, { imagesDir: '/x' }, { accelerator: 'tcg', incoming: false })), TypeError)
})

test.run()
