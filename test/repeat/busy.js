// A busy loop that ends with its parent: the load beside repeated tests.
const parent = process.ppid
while (process.ppid === parent) for (let i = 0; i < 10_000_000; i++);
