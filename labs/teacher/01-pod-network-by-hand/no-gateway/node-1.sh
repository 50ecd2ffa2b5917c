set -e
ip link add cni0 type bridge
ip address add 10.244.1.1/24 dev cni0
ip link set cni0 up

ip netns add red
ip link add veth-red type veth peer name eth0 netns red
ip link set veth-red master cni0 up
ip -n red link set lo up
ip -n red address add 10.244.1.2/24 dev eth0
ip -n red link set eth0 up

ip netns add blue
ip link add veth-blue type veth peer name eth0 netns blue
ip link set veth-blue master cni0 up
ip -n blue link set lo up
ip -n blue address add 10.244.1.3/24 dev eth0
ip -n blue link set eth0 up

ip route add 10.244.2.0/24 via 192.168.100.12
